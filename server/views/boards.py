"""A fleet's boards in pages: what ``covey advise`` needs to know of each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from server.storage import board_queries

if TYPE_CHECKING:
    from server.storage.ledger import Ledger

LARGEST_PAGE = 500


def boards_page(ledger: Ledger, fleet: str, bundle_sha256: str, most: int, after: str = "") -> dict[str, Any]:
    """Return a page of a fleet's devices by name, each with what advice for a bundle stands on; unknown is None.

    Args:
        ledger: the ledger.
        fleet: name of the fleet.
        bundle_sha256: the bundle; a profile of it comes before one of another, and work with others is left out.
        most: devices of a page.
        after: only devices whose names come after this one.
    """
    births = board_queries.births_after(ledger, fleet, after, most + 1)
    names = list(births)[:most]
    profiles = board_queries.fitting_profiles(ledger, fleet, names, bundle_sha256)
    done: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for work in board_queries.work_of(ledger, fleet, names, bundle_sha256):
        done[work.device].append({key: value for key, value in asdict(work).items() if key != "device"})
    return {
        "fleet": fleet,
        "boards": [
            {
                "device": name,
                "capability": births[name].get("capability"),
                "profile": msgspec.to_builtins(profiles[name]) if name in profiles else None,
                "done": done[name],
            }
            for name in names
        ],
        "next_after": names[-1] if len(births) > most else None,
    }
