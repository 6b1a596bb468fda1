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
from edge_runtime.forward_only.moment import add_shaped, shape_of
from edge_runtime.forward_only.noise import privatise, secret_rng
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.forward_only.timing import TimedEngine
from edge_runtime.perturbation.perturb import BACK, FRONT
from edge_runtime.protocol.step_rule import check_rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.engine import BackStack, Engine
    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.protocol.privacy import Privacy
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

BoundaryT = TypeVar("BoundaryT")


@dataclass(frozen=True)
class RoundSettings:
    """The settings of one device's round; see plans.TrainPlan for the fields.

    Attributes:
        shape: factors of directions and updates, see moment.shape_of.
        stack: runs the back block for many perturbed adapters in one call, where the device chose to; None: one by one.
    """

    job_seed: int
    round: int
    device: str
    rule: StepRule
    steps: int
    batch_size: int
    mean_square: float | None
    privacy: Privacy | None = None
    shape: FloatVector | None = None
    stack: BackStack[Any] | None = None

    @classmethod
    def of_plan(cls, plan: TrainPlan, device: str, moment: FloatVector | None = None) -> RoundSettings:
        """Return a plan's settings for the device of this name; ``moment`` is that of before the round, if any."""
        return cls(
            job_seed=plan.job_seed,
            round=plan.round,
            device=device,
            rule=plan.rule,
            steps=plan.steps,
            batch_size=plan.batch_size,
            mean_square=plan.mean_square,
            privacy=plan.privacy,
            shape=shape_of(plan.rule, moment, plan.round),
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
        back_passes: runs of the back block; one for each adapter, also where a call runs many.
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
        copy: whether the local adapter is a copy of ``theta``. Without one, its updates are added each time a workspace
            is written: the same bits, and no second copy of a whole model. Shaped updates are always added like that.
        rng: source of a private round's noise; None: the operating system's entropy.
        clock: monotonic seconds.

    Returns:
        The result, or None where the round was abandoned.

    Raises:
        TrainingError: a loss is not finite.
        ConfigError: the rule is contradictory: see check_rule.
    """
    check_rule(settings.rule)
    started, timed = clock(), TimedEngine(engine, clock, settings.stack)
    front_size, rng = engine.front_workspace.size, secret_rng() if rng is None else rng
    shape, copies, mean_square = settings.shape, copy and settings.shape is None, settings.mean_square
    local, pending, results, all_scalars = theta.copy() if copies else theta, Terms(), [], []
    for step in range(settings.steps):
        directions = step_seeds(settings.rule, settings.job_seed, settings.round, settings.device, step)
        batch = rows.batch(_rows_of_step(len(rows), settings, step))
        result = spzo_step(timed, local, batch, settings.rule, directions, pending, shape, timed.stack)
        scalars = result.scalars if settings.privacy is None else privatise(result.scalars, settings.privacy, rng)
        coefficients, mean_square = step_coefficients(scalars.tolist(), settings.rule, mean_square)
        if copies:
            apply_step(local, front_size, directions, coefficients)
        else:
            pending.add(directions, coefficients)
        results.append(result)
        all_scalars.append(scalars)
        if not on_step(step, result.loss):
            return None
    return RoundResult(
        scalars=np.stack(all_scalars),
        theta=local if copies else _shaped(theta, front_size, pending, shape) if copy else None,
        loss=math.fsum(result.loss for result in results) / len(results),
        seconds=clock() - started,
        front_passes=sum(result.front_passes for result in results),
        back_passes=sum(result.back_passes for result in results),
        front_seconds=timed.front_seconds,
        back_seconds=timed.back_seconds,
    )


def _shaped(theta: FloatVector, front_size: int, terms: Terms, shape: FloatVector | None) -> FloatVector:
    """Return ``theta`` plus all terms, as a replay adds them up."""
    local: FloatVector = np.empty_like(theta)
    for block, part, of_block in (
        (FRONT, slice(0, front_size), terms.front),
        (BACK, slice(front_size, theta.size), terms.back),
    ):
        add_shaped(local[part], theta[part], of_block, block, shape=None if shape is None else shape[part])
    return local


def rows_of_round(n_rows: int, settings: RoundSettings) -> list[int]:
    """Return the indices of the rows that a round's steps use, each once, in the order of their first use."""
    return list(dict.fromkeys(row for step in range(settings.steps) for row in _rows_of_step(n_rows, settings, step)))


def _rows_of_step(n_rows: int, settings: RoundSettings, step: int) -> list[int]:
    """Return the rows of a local step: a job's steps go through the shuffled rows, epoch after epoch."""
    return batch_indices(
        n_rows,
        settings.batch_size,
        settings.round * settings.steps + step,
        lambda epoch: seeds.epoch_seed(settings.job_seed, settings.device, epoch),
    )
