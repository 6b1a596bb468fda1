"""One forward-only round on one device: local steps on private rows give scalars. No network, no disk."""

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

    from edge_runtime.data.batch import Batch
    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.engine import Engine
    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.protocol.privacy import Privacy
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

BoundaryT = TypeVar("BoundaryT")


@dataclass(frozen=True)
class RoundSettings:
    """The settings of one device's round; see plans.TrainPlan for the fields."""

    job_seed: int
    round: int
    device: str
    rule: StepRule
    steps: int
    batch_size: int
    mean_square: float | None
    privacy: Privacy | None = None

    @classmethod
    def of_plan(cls, plan: TrainPlan, device: str) -> RoundSettings:
        """Return a plan's settings for the device of this name."""
        return cls(
            job_seed=plan.job_seed,
            round=plan.round,
            device=device,
            rule=plan.rule,
            steps=plan.steps,
            batch_size=plan.batch_size,
            mean_square=plan.mean_square,
            privacy=plan.privacy,
        )


@dataclass(frozen=True)
class RoundResult:
    """What a round measured.

    Attributes:
        scalars: float32, (steps, scalars per step); clipped and noised where the round is private.
        theta: the device's local adapter after the round, float32, (parameters,); None where no copy was made.
        loss: mean of the steps' losses.
        seconds: duration of the local steps.
        front_passes: runs of the front block; of a front that is run row by row, as many as its rows make batches.
        back_passes: runs of the back block.
        front_seconds: duration of the front passes alone.
        back_seconds: duration of the back passes alone.
        front_hits: rows of the steps' batches whose front activation was kept; None: the front is not frozen.
        front_misses: rows for which the front was run; None as above.
    """

    scalars: FloatVector
    theta: FloatVector | None
    loss: float
    seconds: float
    front_passes: int
    back_passes: int
    front_seconds: float
    back_seconds: float
    front_hits: int | None = None
    front_misses: int | None = None


def train_round(
    engine: Engine[BoundaryT],
    theta: FloatVector,
    rows: Rows,
    settings: RoundSettings,
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
        settings: the round's settings.
        on_step: called after each step with its index and loss; the round is abandoned when it returns False.
        copy: whether the local adapter is a copy of ``theta``. Without a copy, its updates are added each time a
            workspace is written: the same bits, and no second copy of a whole model in memory.
        rng: source of a private round's noise; None: the operating system's entropy.
        clock: monotonic seconds.

    Returns:
        The result, or None where the round was abandoned.

    Raises:
        TrainingError: a loss is not finite.
        ConfigError: the rule is contradictory: see check_rule.
    """
    check_rule(settings.rule)
    started, timed = clock(), TimedEngine(engine, clock)
    front_size = engine.front_workspace.size
    rng = secret_rng() if rng is None else rng
    local, pending, mean_square = theta.copy() if copy else theta, Terms(), settings.mean_square
    results, all_scalars = [], []
    for step in range(settings.steps):
        directions = step_seeds(settings.rule, settings.job_seed, settings.round, settings.device, step)
        result = spzo_step(timed, local, _step_batch(rows, settings, step), settings.rule, directions, pending)
        scalars = result.scalars if settings.privacy is None else privatise(result.scalars, settings.privacy, rng)
        coefficients, mean_square = step_coefficients(scalars.tolist(), settings.rule, mean_square)
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
        seconds=clock() - started,
        front_passes=sum(result.front_passes for result in results),
        back_passes=sum(result.back_passes for result in results),
        front_seconds=timed.front_seconds,
        back_seconds=timed.back_seconds,
    )


def _step_batch(rows: Rows, settings: RoundSettings, step: int) -> Batch:
    """Return the rows of a local step: a job's steps go through the shuffled rows, epoch after epoch."""
    indices = batch_indices(
        len(rows),
        settings.batch_size,
        settings.round * settings.steps + step,
        lambda epoch: seeds.epoch_seed(settings.job_seed, settings.device, epoch),
    )
    return rows.batch(indices)
