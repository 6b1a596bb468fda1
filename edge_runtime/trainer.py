"""One round on one device: local steps on private rows, scalars out. No network, no disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_runtime import seeds
from edge_runtime.data import batch_indices
from edge_runtime.replay import apply_step, step_coefficients
from edge_runtime.spzo import check_rule, spzo_step, step_seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.engine import Engine
    from edge_runtime.perturbation import FloatVector
    from edge_runtime.rows import Rows
    from edge_runtime.spzo import StepRule

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


@dataclass(frozen=True)
class RoundResult:
    """What a round gave.

    Attributes:
        scalars: float32, (steps, scalars a step).
        theta: the device's local adapter after the round, float32, (parameters,).
        loss: mean of the steps' losses.
        front_passes: runs of the front block.
        back_passes: runs of the back block.
    """

    scalars: FloatVector
    theta: FloatVector
    loss: float
    front_passes: int
    back_passes: int


def train_round(
    engine: Engine[BoundaryT],
    theta: FloatVector,
    rows: Rows,
    work: RoundWork,
    on_step: Callable[[int, float], bool] = lambda _step, _loss: True,
) -> RoundResult | None:
    """Run the local steps of a round; ``theta`` stays as it is.

    Args:
        engine: front and back at the round's split.
        theta: the adapter to start from.
        rows: the private rows.
        work: what to do.
        on_step: told each step's index and loss; the round is given up when it returns False.

    Returns:
        The result, or None where the round was given up.

    Raises:
        TrainingError: a loss is not finite.
        ConfigError: a rule that cannot be.
    """
    check_rule(work.rule)
    local, mean_square = theta.copy(), work.mean_square
    results = []
    for step in range(work.steps):
        indices = batch_indices(
            len(rows),
            work.batch_size,
            work.round * work.steps + step,
            lambda epoch: seeds.epoch_seed(work.job_seed, work.device, epoch),
        )
        directions = step_seeds(work.rule, work.job_seed, work.round, work.device, step)
        result = spzo_step(engine, local, rows.batch(indices), work.rule, directions)
        coefficients, mean_square = step_coefficients(result.scalars.tolist(), work.rule, mean_square)
        apply_step(local, engine.front_workspace.size, directions, coefficients)
        results.append(result)
        if not on_step(step, result.loss):
            return None
    return RoundResult(
        scalars=np.stack([result.scalars for result in results]),
        theta=local,
        loss=math.fsum(result.loss for result in results) / len(results),
        front_passes=sum(result.front_passes for result in results),
        back_passes=sum(result.back_passes for result in results),
    )
