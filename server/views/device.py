"""One device with all that is known of it: the dashboard's page and ``covey device show`` show the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

from edge_runtime.protocol.profile_text import profile_text
from server.errors import NoSuchDeviceError
from server.storage import device_queries, fleet_queries
from server.storage.registry_queries import find_device
from server.storage.rollout_queries import rollouts_of
from server.storage.tables import time_text
from server.storage.trust_queries import certificates_of
from server.views.fleet import described
from server.views.tables import short, short_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.storage.ledger import Ledger

HISTORY_ROWS = 200
"""Offers that are shown of a device."""
_TEXT_ROWS = 20
"""Offers that are shown of a device as text."""
_FIGURES = (
    ("state", "state"),
    ("why", "why"),
    ("last_seen", "last seen"),
    ("board", "board"),
    ("machine", "machine"),
    ("memory_bytes", "memory, bytes"),
    ("temperature_c", "temperature at its profile, °C"),
    ("engines", "engine"),
    ("execution_providers", "runs on"),
    ("covey_version", "Covey"),
    ("python_version", "Python"),
    ("training", "trains by"),
    ("arm", "arm"),
    ("personal_layers", "personal layers"),
    ("rows", "rows"),
    ("reports", "reports"),
    ("mean_seconds", "seconds a report"),
    ("held_out", "accuracy on held-out rows"),
    ("predicts", "answers the server"),
    ("tags", "tags"),
    ("hostname", "host"),
    ("address", "address"),
    ("bundle_sha256", "bundle"),
    ("adapter_sha256", "adapter"),
)
_ROUNDS = ("job", "round", "attempt", "opened_at", "state", "seconds", "loss", "arm", "level", "personal_layers")
_ROUNDS_TEXT = (*_ROUNDS, "bytes_up", "bytes_down", "detail")
_CERTIFICATES = ("serial", "expires_at", "revoked_at", "reason")
_RELEASES = ("rollout", "kind", "sha256", "state", "rollout_state", "created_at", "reason")


def device_shown(ledger: Ledger, fleet: str, device: str, refused: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return one device as in fleet_page, with all that the ledger has of it. Unknown is None.

    ``offer_list`` has its offers and arms, the newest first; ``profile`` is None where it has none; ``personal_layers``
    is of its last report that has any; ``certificates`` and ``releases`` have the newest first; ``refused`` has how
    many of its messages were refused since the server's start, by reason.

    Args:
        ledger: the ledger.
        fleet: name of the fleet.
        device: name of the device.
        refused: how many messages were refused since the start, by ``DEVICE: REASON``; None: no server runs.

    Raises:
        NoSuchDeviceError: it has never announced itself.
    """
    row = find_device(ledger, fleet, device)
    if row is None:
        raise NoSuchDeviceError(fleet, device)
    offers = fleet_queries.offers_to_device(ledger, fleet, device, HISTORY_ROWS)
    arms = fleet_queries.arms_of_device(ledger, fleet, device, HISTORY_ROWS)
    (facts,) = described(ledger, fleet, [row])
    seconds = [offer.seconds for offer in offers if offer.state == "reported" and offer.seconds is not None]
    prefix = f"{device}: "
    return {
        "fleet": fleet,
        **facts,
        "ineligible": row.ineligible,
        "reason": row.reason,
        "python_version": row.birth.get("python_version"),
        "bundle_sha256": row.birth.get("bundle_sha256"),
        "held_out": row.birth.get("held_out"),
        "predicts": row.birth.get("predicts", False) if row.birth else None,
        "reports": sum(offer.state == "reported" for offer in offers),
        "mean_seconds": sum(seconds) / len(seconds) if seconds else None,
        "personal_layers": next((offer.personal_layers for offer in offers if offer.personal_layers is not None), None),
        "offer_list": [
            dataclasses.asdict(offer) | {"round": offer.index, "arm": arms.get((offer.job, offer.index, offer.attempt))}
            for offer in offers
        ],
        "profile": device_queries.newest_profile(ledger, fleet, device),
        "certificates": _certificates(ledger, fleet, device),
        "releases": _releases(ledger, fleet, device),
        "refused": None
        if refused is None
        else {key.removeprefix(prefix): count for key, count in refused.items() if key.startswith(prefix)},
    }


def _certificates(ledger: Ledger, fleet: str, device: str) -> list[dict[str, Any]]:
    return [
        {
            "serial": one.serial,
            "key_sha256": one.key_sha256,
            "expires_at": time_text(dt.datetime.fromtimestamp(one.expires_at_s, dt.timezone.utc)),
            "revoked_at": one.revoked_at,
            "reason": one.reason,
        }
        for one in reversed(certificates_of(ledger, fleet, device))
    ]


def _releases(ledger: Ledger, fleet: str, device: str) -> list[dict[str, Any]]:
    """Return what was rolled out to a device; a document that another version of Covey wrote is passed over."""
    found = []
    for record in reversed(rollouts_of(ledger, fleet)):
        entry = record.document.get("devices", {}).get(device)
        if entry is not None:
            found.append(
                {
                    "rollout": record.id,
                    "kind": record.document.get("kind"),
                    "sha256": record.document.get("sha256"),
                    "state": entry.get("state"),
                    "reason": entry.get("reason") or None,
                    "rollout_state": record.state,
                    "created_at": record.created_at,
                }
            )
    return found


def device_text(shown: dict[str, Any]) -> str:
    """Return a shown device as text: figures, then a part for each of rounds, certificates, releases and profile."""
    held_out = shown["held_out"]
    figures = {**shown, "held_out": None if held_out is None else held_out_text(held_out)}
    lines = [f"{'device':32} {shown['device']} of fleet {shown['fleet']}"]
    lines += [f"{words:32} {'-' if figures[key] in (None, []) else short(figures[key])}" for key, words in _FIGURES]
    offers = [{**offer, "round": offer["round"] + 1, "attempt": offer["attempt"] + 1} for offer in shown["offer_list"]]
    parts = ["\n".join(lines)]
    for heading, rows, columns in (
        (f"Rounds (the last {_TEXT_ROWS})" if len(offers) > _TEXT_ROWS else "Rounds", offers, _ROUNDS_TEXT),
        ("Certificates", shown["certificates"], _CERTIFICATES),
        ("Releases", shown["releases"], _RELEASES),
    ):
        if rows:
            parts.append(f"{heading}\n{short_table(rows[:_TEXT_ROWS], columns)}")
    if shown["refused"]:
        reasons = "\n".join(f"{reason}: {count}" for reason, count in shown["refused"].items())
        parts.append(f"Messages that were refused since the server's start\n{reasons}")
    if shown["profile"] is not None:
        parts.append(f"Profile\n{profile_text(shown['profile'])}")
    return "\n\n".join(parts)


def held_out_text(found: Mapping[str, Any]) -> str:
    """Return how well a device's own model does on held-out rows, as a table shows it."""
    fallen = f", fallen from {found['best']:.3f}" if found["has_fallen"] else ""
    return f"{found['accuracy']:.3f}{fallen}"
