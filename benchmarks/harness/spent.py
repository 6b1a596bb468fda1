"""What a fleet's job had spent by the end of each round: forward passes, seconds of its devices, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.fleet_run import JOB
from server.storage.queries import attempts_of, passes_per_round, seconds_per_round

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


@dataclass(frozen=True)
class Spent:
    """All devices together, from the job's start.

    Attributes:
        forwards: forward equivalents: a front pass counts by the front's share of the layers, a back pass by the rest.
        seconds: seconds of training, as the devices measured them.
        bytes_moved: bytes that the devices sent and received.
    """

    forwards: float
    seconds: float
    bytes_moved: int


def spent_by_round(ledger: Ledger, front_share: float) -> dict[int, Spent]:
    """Return what was spent until each round (from 0) had closed, in order.

    Args:
        ledger: the job's ledger.
        front_share: the front block's share of the layers.
    """
    passes, seconds = passes_per_round(ledger, JOB), seconds_per_round(ledger, JOB)
    spent: dict[int, Spent] = {}
    last = Spent(0.0, 0.0, 0)
    moved = dict.fromkeys(passes, 0)
    for attempt in attempts_of(ledger, JOB):
        if attempt.index in moved:
            moved[attempt.index] += (attempt.bytes_up or 0) + (attempt.bytes_down or 0)
    for index, (front, back) in passes.items():
        last = Spent(
            last.forwards + front * front_share + back * (1 - front_share),
            last.seconds + seconds.get(index, 0.0),
            last.bytes_moved + moved[index],
        )
        spent[index] = last
    return spent
