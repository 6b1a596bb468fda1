"""What a fleet's job had spent by the end of each round: forward passes, seconds of its devices, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.fleet_run import JOB
from server.storage.queries import attempts_of, passes_per_round, seconds_per_round, taken_examples

if TYPE_CHECKING:
    from benchmarks.harness.fleet_run import FleetRun


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


def spent_by_round(ran: FleetRun, layers: float) -> dict[int, Spent]:
    """Return what a job had spent until each round (from 0) had closed, in order.

    Args:
        ran: the job's run.
        layers: layers of its model; an output that costs as much as some of them counts as such.
    """
    ledger, front_share = ran.ledger, ran.fitted.split / layers
    passes, seconds, frames = passes_per_round(ledger, JOB), seconds_per_round(ledger, JOB), _passes_for_frames(ran)
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


def _passes_for_frames(ran: FleetRun) -> dict[int, float]:
    """Return, for each round, what devices ran to learn frames in it, in front passes of whole batches."""
    seen: set[str] = set()
    passes: dict[int, float] = {}
    rows = frame_tokens(most := ran.bundle.manifest.task.max_tokens) / most
    for attempt in attempts_of(ran.ledger, JOB):
        if attempt.index < ran.fitted.job.frozen_rounds:
            new = taken_examples(ran.ledger, JOB, attempt.index, attempt.attempt).keys() - seen
            passes[attempt.index] = passes.get(attempt.index, 0.0) + len(new) * rows / ran.fitted.job.batch_size
            seen |= new
    return passes


def frame_tokens(most_tokens: int) -> int:
    """Return how many tokens a device runs once, before its first step behind a frozen front.

    They teach it what crosses the cut beside the rows' own activations (edge_runtime.fronts.frame): a longest and a
    shortest row at the greatest length, two batches with padding, and each row of these alone. No report counts them.

    Args:
        most_tokens: tokens of the longest row, at least 8.
    """
    return 5 * most_tokens + most_tokens // 3 + 29
