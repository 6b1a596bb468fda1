"""What a fleet's job had spent by the end of each round: forward passes, seconds of its devices, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.fleet_run import JOB
from server.storage.queries import attempts_of, passes_per_round, seconds_per_round, taken_examples

if TYPE_CHECKING:
    from server.job.job import Job
    from server.storage.ledger import Ledger


FRAME_ROWS = 6
"""What a device runs once before it keeps a front's activations, to learn the rest of what crosses the cut (see
edge_runtime.fronts.frame): at most the tokens of so many rows of the greatest length. Reports do not count it."""


@dataclass(frozen=True)
class Spent:
    """All devices together, from the job's start.

    Attributes:
        forwards: forward equivalents: a front pass counts by the front's share of the layers, a back pass by the rest.
            Of a frozen front a row counts when it is run, and not when it is looked up.
        seconds: seconds of training, as the devices measured them.
        bytes_moved: bytes that the devices sent and received.
    """

    forwards: float
    seconds: float
    bytes_moved: int


def spent_by_round(ledger: Ledger, job: Job, front_share: float) -> dict[int, Spent]:
    """Return what was spent until each round (from 0) had closed, in order.

    Args:
        ledger: the job's ledger.
        job: the job.
        front_share: the front block's share of the layers.
    """
    passes, seconds = passes_per_round(ledger, JOB), seconds_per_round(ledger, JOB)
    frames = _passes_for_frames(ledger, job)
    spent: dict[int, Spent] = {}
    last = Spent(0.0, 0.0, 0)
    moved = dict.fromkeys(passes, 0)
    for attempt in attempts_of(ledger, JOB):
        if attempt.index in moved:
            moved[attempt.index] += (attempt.bytes_up or 0) + (attempt.bytes_down or 0)
    for index, (front, back) in passes.items():
        last = Spent(
            last.forwards + (front + frames.get(index, 0.0)) * front_share + back * (1 - front_share),
            last.seconds + seconds.get(index, 0.0),
            last.bytes_moved + moved[index],
        )
        spent[index] = last
    return spent


def _passes_for_frames(ledger: Ledger, job: Job) -> dict[int, float]:
    """Return, for each round, the front passes of devices whose front is frozen for the first time."""
    seen: set[str] = set()
    passes: dict[int, float] = {}
    for attempt in attempts_of(ledger, JOB):
        if attempt.index < job.frozen_rounds:
            new = taken_examples(ledger, JOB, attempt.index, attempt.attempt).keys() - seen
            passes[attempt.index] = passes.get(attempt.index, 0.0) + len(new) * FRAME_ROWS / job.batch_size
            seen |= new
    return passes
