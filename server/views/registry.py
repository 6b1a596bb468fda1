"""The devices of a ledger as plain values, one page after the other, for the API and for ``covey device list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.storage import device_queries, fleet_queries
from server.storage.registry_queries import DeviceFilter, devices_after, fleets_of, with_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger
    from server.storage.records import DeviceRecord

MOST_ON_A_PAGE = 1000
"""Devices that the API answers at once."""


def device_page(ledger: Ledger, wanted: DeviceFilter, after: str, limit: int) -> dict[str, Any]:
    """Return a page of the devices that are asked for, by fleet and name.

    Args:
        ledger: the ledger.
        wanted: which devices are asked for.
        after: what the page before has as ``next``; "": the first page.
        limit: devices on the page, at most.

    Returns:
        ``devices``, see device_list; ``next``: what to ask for next, None: there are no more.
    """
    begun, _, name = after.partition("/")
    found: list[DeviceRecord] = []
    for fleet in fleets_of(ledger):
        if fleet < begun:
            continue
        rows = devices_after(ledger, fleet, wanted, name if fleet == begun else "", limit + 1 - len(found))
        found += with_reports(ledger, fleet, rows)
        if len(found) > limit:
            break
    shown, more = found[:limit], len(found) > limit
    return {"devices": _shown(ledger, shown), "next": f"{shown[-1].fleet}/{shown[-1].device}" if more else None}


def device_list(ledger: Ledger, wanted: DeviceFilter | None = None) -> list[dict[str, Any]]:
    """Return every device that ever announced itself: its last state, what it announced, and its reports.

    Args:
        ledger: the ledger.
        wanted: only these of them; None: all.
    """
    return _shown(ledger, device_queries.devices_of(ledger, wanted))


def _shown(ledger: Ledger, devices: Sequence[DeviceRecord]) -> list[dict[str, Any]]:
    fleets = {known.fleet for known in devices}
    tags = {
        fleet: fleet_queries.tags_given(ledger, fleet, [known.device for known in devices if known.fleet == fleet])
        for fleet in fleets
    }
    return [
        {
            "fleet": known.fleet,
            "device": known.device,
            "state": known.state,
            "ineligible": known.ineligible,
            "reason": known.reason,
            "quarantine": known.quarantine,
            "tags": sorted(tags[known.fleet].get(known.device, set()) | set(known.birth.get("tags", ()))),
            "adapter_sha256": known.adapter_sha256,
            "last_seen": known.last_seen,
            "reports": known.reports,
            "mean_seconds": known.mean_seconds,
            "machine": known.birth.get("machine"),
            "covey_version": known.birth.get("covey_version"),
            "runtimes": known.birth.get("runtimes"),
            "execution_providers": (known.birth.get("execution_providers") or ["cpu"]) if known.birth else None,
            "rows": known.birth.get("rows"),
            "training": known.birth.get("capability", {}).get("kind"),
            "held_out": known.birth.get("held_out"),
        }
        for known in devices
    ]
