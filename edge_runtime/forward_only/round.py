"""One round on one device: local steps on private rows, scalars out. No network, no disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_runtime import seeds
from edge_runtime.data.order import batch_indices
from edge_runtime.forward_only.coefficients import Terms, apply_step, step_coefficients
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.noise import privatise, secret_rng
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.forward_only.timing import TimedEngine
from edge_runtime.protocol.step_rule import check_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.engine import Engine
    from edge_runtime.protocol.privacy import Privacy
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

BoundaryT = TypeVar("BoundaryT")


@dataclass(frozen=True)
class RoundWork:
    """What a round asks of one device; see protocol.TrainPlan for the fields."""

    job_seed: int
    round: int
    device: str
    rule: StepRule
    steps: int
    batch_size: int
    mean_square: float | None
    privacy: Privacy | None = None


@dataclass(frozen=True)
class RoundResult:
    """What a round gave.

    Attributes:
        scalars: float32, (steps, scalars a step); clipped and noised where the round is private.
        theta: the device's local adapter after the round, float32, (parameters,); None where no copy was made.
        loss: mean of the steps' losses.
        front_passes: runs of the front block.
        back_passes: runs of the back block.
        front_seconds: time of the front passes alone.
        back_seconds: time of the back passes alone.
    """

    scalars: FloatVector
    theta: FloatVector | None
    loss: float
    front_passes: int
    back_passes: int
    front_seconds: float
    back_seconds: float


def train_round(
    engine: Engine[BoundaryT],
    theta: FloatVector,
    rows: Rows,
    work: RoundWork,
    on_step: Callable[[int, float], bool] = lambda _step, _loss: True,
    *,
    copy: bool = True,
    rng: np.random.Generator | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RoundResult | None:
    """Run the local steps of a round; ``theta`` stays as it is.

    Args:
        engine: front and back at the round's split.
        theta: the adapter to start from; may be mapped.
        rows: the private rows.
        work: what to do.
        on_step: told each step's index and loss; the round is given up when it returns False.
        copy: keep the local adapter as a copy of ``theta``. Without, its updates are added each time the workspaces
            are written: the same bits, no second copy of a whole model in memory.
        rng: where a private round's noise comes from; None: from the operating system's entropy.
        clock: monotonic seconds.

    Returns:
        The result, or None where the round was given up.

    Raises:
        TrainingError: a loss is not finite.
        ConfigError: a rule that cannot be.
    """
    check_rule(work.rule)
    timed = TimedEngine(engine, clock)
    front_size = engine.front_workspace.size
    rng = secret_rng() if rng is None else rng
    local, pending, mean_square = theta.copy() if copy else theta, Terms(), work.mean_square
    results, all_scalars = [], []
    for step in range(work.steps):
        indices = batch_indices(
            len(rows),
            work.batch_size,
            work.round * work.steps + step,
            lambda epoch: seeds.epoch_seed(work.job_seed, work.device, epoch),
        )
        directions = step_seeds(work.rule, work.job_seed, work.round, work.device, step)
        result = spzo_step(timed, local, rows.batch(indices), work.rule, directions, pending)
        scalars = result.scalars if work.privacy is None else privatise(result.scalars, work.privacy, rng)
        coefficients, mean_square = step_coefficients(scalars.tolist(), work.rule, mean_square)
        if copy:
            apply_step(local, front_size, directions, coefficients)
        else:
            pending.add(directions, coefficients)
        results.append(result)
        all_scalars.append(scalars)
        if not on_step(step, result.loss):
            return None
    return RoundResult(
        scalars=np.stack(all_scalars),
        theta=local if copy else None,
        loss=math.fsum(result.loss for result in results) / len(results),
        front_passes=sum(result.front_passes for result in results),
        back_passes=sum(result.back_passes for result in results),
        front_seconds=timed.front_seconds,
        back_seconds=timed.back_seconds,
    )
