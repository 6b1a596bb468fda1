"""A fleet page by page, for the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from edge_runtime.bundle.manifest import Runtime
from server.storage import device_queries, fleet_queries
from server.storage.registry_queries import count_devices, devices_after, devices_before, versions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.fleet_queries import BoardSeen
    from server.storage.ledger import Ledger
    from server.storage.registry_queries import DeviceFilter, FleetRow

PAGE_ROWS = 50
"""Devices on a page."""
_MOST_COUNTED = 10_000
"""Devices that a filter finds and that are counted; where there are more, the page says that there are."""


def fleet_page(ledger: Ledger, fleet: str, wanted: DeviceFilter, after: str, before: str) -> dict[str, Any]:
    """Return one page of a fleet's devices, and what they can be filtered by; unknown is None.

    ``count`` is how many devices are asked for; where ``is_counted`` is not, there may be more.

    Args:
        ledger: the ledger.
        fleet: name of the fleet.
        wanted: which devices are asked for.
        after: the page begins behind this name; "": with the first.
        before: the page ends before this name; "": it is not said. Only one of the two is given.
    """
    states = device_queries.states_of(ledger, fleet)
    known = sum(states.values())
    if before:
        rows = devices_before(ledger, fleet, wanted, before, PAGE_ROWS + 1)
        has_previous, has_next, rows = len(rows) > PAGE_ROWS, True, rows[-PAGE_ROWS:]
    else:
        rows = devices_after(ledger, fleet, wanted, after, PAGE_ROWS + 1)
        has_previous, has_next, rows = bool(after), len(rows) > PAGE_ROWS, rows[:PAGE_ROWS]
    if wanted.is_empty:
        count = known
    elif not has_previous and not has_next:
        count = len(rows)
    else:
        count = count_devices(ledger, fleet, wanted, _MOST_COUNTED)
    return {
        "fleet": fleet,
        "previous": rows[0].device if rows and has_previous else None,
        "next": rows[-1].device if rows and has_next else None,
        "count": count,
        "is_counted": wanted.is_empty or count < _MOST_COUNTED,
        "devices_known": known,
        "states": states,
        "versions": versions_of(ledger, fleet),
        "devices": described(ledger, fleet, rows),
    }


def described(ledger: Ledger, fleet: str, rows: Sequence[FleetRow]) -> list[dict[str, Any]]:
    """Return devices with their tags and arms, and with what their newest profiles say of their boards."""
    names = [row.device for row in rows]
    tags = fleet_queries.tags_given(ledger, fleet, names)
    boards = fleet_queries.boards_seen(ledger, fleet, names)
    choices = fleet_queries.last_choices(ledger, fleet, names)
    return [
        {
            **_facts(row, boards.get(row.device)),
            "tags": sorted(tags.get(row.device, set()) | set(row.birth.get("tags", ()))),
            "arm": choice.arm.name if (choice := choices.get(row.device)) and choice.arm else None,
        }
        for row in rows
    ]


def _facts(row: FleetRow, board: BoardSeen | None) -> dict[str, Any]:
    reading = None if board is None or board.measured is None else board.measured.after
    birth = row.birth
    runtimes = birth.get("runtimes") or {}
    return {
        "device": row.device,
        "state": row.state,
        "why": row.quarantine or row.ineligible or row.reason,
        "quarantine": row.quarantine,
        "last_seen": row.last_seen,
        "adapter_sha256": row.adapter_sha256,
        "board": None if board is None else board.facts.board,
        "memory_bytes": None if board is None else board.facts.memory_bytes,
        "temperature_c": None if reading is None else reading.temperature_c,
        "machine": birth.get("machine"),
        "covey_version": birth.get("covey_version"),
        "engines": [f"{name} {runtimes[name]}" for name in get_args(Runtime) if name in runtimes],
        "execution_providers": (birth.get("execution_providers") or ["cpu"]) if birth else None,
        "training": (birth.get("capability") or {}).get("kind"),
        "rows": birth.get("rows"),
        "hostname": birth.get("hostname"),
        "address": birth.get("address"),
    }
