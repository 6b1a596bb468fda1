"""Replays a chain of rounds slice by slice: what any process needs of the rounds, and what it makes of one slice.

A slice depends on no other one: perturbations can be made from any parameter on, and every step of a replay is done
for each parameter alone. So slices may be replayed in any order, by any number of processes, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.replay import Part, replay_part, round_terms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.forward_only.coefficients import Terms
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class ReplayTask:
    """What the replay of every slice needs.

    Attributes:
        logs: the rounds, in order, without the devices' scalars.
        terms: each round's terms.
        size: number of parameters of the whole adapter.
    """

    logs: Sequence[RoundLog]
    terms: Sequence[Terms]
    size: int

    @property
    def n_terms(self) -> int:
        """Number of terms in all rounds."""
        return sum(len(added) for added in self.terms)


@dataclass(frozen=True)
class Slice:
    """A part of the parameters, before or after a chain of rounds.

    Attributes:
        start: index of the part's first parameter.
        now: float32, (n,), the adapter.
        before: the same part of the adapter before it; None: it is not known, or not needed.
        moment: the same part of the moment; None: the rounds' rule keeps none.
        is_written: whether it is in the new files already, and its arrays are maps of them.
    """

    start: int
    now: FloatVector
    before: FloatVector | None
    moment: FloatVector | None
    is_written: bool = False


@dataclass(frozen=True)
class MomentFiles:
    """Where the moment of a chain of rounds comes from and goes to; see moment.py.

    Attributes:
        base: the moment before the first round, float32, (parameters,); None: zeros, as before a job's first round.
        path: the new file, for the moment after the last round.
    """

    base: FloatVector | None
    path: Path


@dataclass(frozen=True)
class ReplayFiles:
    """What a replay reads, and the new files that it writes; these are open, and empty.

    Attributes:
        theta: the adapter before the first round, float32, (parameters,); may be mapped.
        previous: the adapter before ``theta``; None: it is not known, or not needed.
        moment: where the moment comes from and goes to; None: the rounds' rule keeps none.
        path: for the adapter after the last round.
        before_path: for the adapter before the last round; None: it is not kept.
        slice_size: parameters of a slice; the last one may be shorter.
    """

    theta: FloatVector
    previous: FloatVector | None
    moment: MomentFiles | None
    path: Path
    before_path: Path | None
    slice_size: int

    def borders(self) -> Iterator[tuple[int, int]]:
        """Yield where each slice starts and stops; this depends on nothing but the number of parameters."""
        for start in range(0, self.theta.size, self.slice_size):
            yield start, min(start + self.slice_size, self.theta.size)

    def slices(self) -> Iterator[Slice]:
        """Read one slice after the other."""
        for start, stop in self.borders():
            part = slice(start, stop)
            now: FloatVector = np.array(self.theta[part], dtype=np.float32)
            before = None if self.previous is None else np.array(self.previous[part], dtype=np.float32)
            yield Slice(start, now, before, None if self.moment is None else part_of_moment(self.moment.base, part))


def part_of_moment(base: FloatVector | None, part: slice) -> FloatVector:
    """Read a part of the moment before the first round: zeros where a job's first round has none."""
    if base is None:
        return np.zeros(part.stop - part.start, dtype=np.float32)
    return np.array(base[part], dtype=np.float32)


Replayed = Callable[[ReplayTask, ReplayFiles], Iterator[Slice]]
"""Replays the slices of a task, and returns them in their order."""


def replay_task(logs: Sequence[RoundLog], size: int) -> ReplayTask:
    """Return what the replay of every slice needs.

    Args:
        logs: the rounds, in order.
        size: number of parameters of the whole adapter.

    Raises:
        ProtocolError: the scalars or terms of a log do not fit its rule.
    """
    terms = [round_terms(log) for log in logs]
    return ReplayTask([msgspec.structs.replace(log, devices=[], terms=None) for log in logs], terms, size)


def replay_slice(task: ReplayTask, part: Slice) -> Slice:
    """Return a slice after the rounds of a task; the one given stays as it is.

    Raises:
        TrainingError: the result is not finite, or the previous adapter or the moment is needed and missing.
    """
    now, before = part.now, part.before
    moment = None if part.moment is None else np.array(part.moment, dtype=np.float32)
    for log, added in zip(task.logs, task.terms, strict=True):
        after: FloatVector = np.empty_like(now)
        replay_part(Part(after, now, before, moment, part.start, task.size), log, added)
        now, before = after, now
    if not np.isfinite(now).all():
        raise TrainingError(
            f"round {task.logs[-1].round} gives an adapter that is not finite",
            "lower learning_rate in the job's [step]",
        )
    return Slice(part.start, now, before, moment)


def replay_in_turn(task: ReplayTask, files: ReplayFiles) -> Iterator[Slice]:
    """Replay one slice after the other in this process: see Replayed."""
    return (replay_slice(task, part) for part in files.slices())
