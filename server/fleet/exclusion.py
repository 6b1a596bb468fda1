"""Which devices a job excludes after rejected contributions; it follows from the ledger, so it survives a restart.

This is not the fleet's quarantine of two machines with one identity (server/rounds/roster.py): an excluded device works
for other jobs, and a new job begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

REJECTED = "rejected: "
"""How the detail of an offer begins whose report was wrong; a device's own refusal begins otherwise."""
_REFUSED = "refused: "


def rejection(reason: str) -> str:
    """Return the detail of an offer whose report was rejected."""
    return REJECTED + reason


def own_refusal(message: str) -> str:
    """Return the detail of an offer that the device refused itself; it is never taken for a rejection."""
    return _REFUSED + message if message.startswith(REJECTED) else message


def rejections(offers: Iterable[tuple[str, str, str | None]]) -> dict[str, int]:
    """Return how many contributions of each device were rejected, by name; devices without any are left out.

    Args:
        offers: device, state and detail of each offer.
    """
    counts: dict[str, int] = {}
    for device, state, detail in offers:
        if state == "refused" and (detail or "").startswith(REJECTED):
            counts[device] = counts.get(device, 0) + 1
    return counts


def excluded(offers: Iterable[tuple[str, str, str | None]], after: int | None) -> dict[str, str]:
    """Return why each excluded device is, by name.

    A report that was taken begins the count anew; a round in which the device refused or was lost changes nothing.

    Args:
        offers: device, state and detail of each offer of a job, in the order of rounds and attempts.
        after: number of rejections in a row that exclude a device; None: none do.
    """
    if after is None:
        return {}
    in_a_row: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for device, state, detail in offers:
        if state == "reported":
            in_a_row[device] = 0
        elif state == "refused" and (detail or "").startswith(REJECTED):
            in_a_row[device] = in_a_row.get(device, 0) + 1
            if in_a_row[device] >= after:
                last = (detail or "").removeprefix(REJECTED)
                reasons[device] = f"{in_a_row[device]} contributions in a row were rejected, the last one: {last}"
    return reasons
