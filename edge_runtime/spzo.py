"""The forward-only step: SPZO, zeroth order on a network split into two blocks.

Our reading of FedSPZO ("Efficient Zero-Order Federated Finetuning of Language Models for Resource-Constrained
Devices"; its body was not available to us, the abstract and summary were):

``nested``, two-sided::

    for i in 1..P1:                      # front directions z_i; one activation kept per sign
        y⁺ = front(θf + eps z_i);  y⁻ = front(θf − eps z_i)
        for j in 1..P2:                  # back directions z_ij; y⁺ and y⁻ are reused
            g_ij = (back(y⁺, θb + eps z_ij) − back(y⁻, θb − eps z_ij)) / (2 eps)
    front gradient ≈ mean_ij g_ij z_i    back gradient ≈ mean_ij (g_ij − b_ij) z_ij

``clean``, back directions around the clean activation::

    for i in 1..P1:  g_i = (back(front(θf + eps z_i), θb) − back(front(θf − eps z_i), θb)) / (2 eps)
    y = front(θf)
    for j in 1..P2:  h_j = (back(y, θb + eps z_j) − back(y, θb − eps z_j)) / (2 eps)

``b_ij``, the mean of the other g_ij' of the same i, is ours, not the paper's (``leave_one_out``): the g_ij share the
front's term, and taking it out is unbiased because b_ij does not depend on z_ij.

A front block without trainable parameters is run once, unperturbed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
import numpy as np

from edge_runtime import seeds
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.perturbation import BACK, FRONT, perturb_into

if TYPE_CHECKING:
    from edge_runtime.batch import Batch
    from edge_runtime.engine import Engine
    from edge_runtime.perturbation import FloatVector

BoundaryT = TypeVar("BoundaryT")

MAX_PERTURBATIONS = 256


class StepRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a step perturbs, and how its scalars become an update.

    Attributes:
        variant: ``nested`` or ``clean``; see the module's docstring.
        front_perturbations: P1.
        back_perturbations: P2; for each front direction in ``nested``, in all in ``clean``.
        eps: scale of a perturbation.
        learning_rate: scale of an update; with ``normalize = "rms"``, of an update whose scalars have size 1.
        leave_one_out: take the mean of the other scalars out of each back scalar; needs P2 of 2 or more.
        normalize: ``rms`` divides by a running root mean square of the scalars, ``none`` does not.
    """

    variant: Literal["nested", "clean"] = "nested"
    front_perturbations: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)] = 1
    back_perturbations: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)] = 8
    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-2
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e3)] = 1e-2
    leave_one_out: bool = False
    normalize: Literal["none", "rms"] = "rms"

    @property
    def scalars_per_step(self) -> int:
        """How many scalars one step reports."""
        p1, p2 = self.front_perturbations, self.back_perturbations
        return p1 * p2 if self.variant == "nested" else p1 + p2


def check_rule(rule: StepRule) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: leave-one-out where the back scalars have nothing in common to take out.
    """
    if rule.leave_one_out and (rule.variant == "clean" or rule.back_perturbations < 2):
        raise ConfigError(
            'leave_one_out needs variant = "nested" and back_perturbations of 2 or more',
            "change the job's [step]",
        )


@dataclass(frozen=True)
class StepSeeds:
    """Seeds of a step's directions: ``front[i]``, and ``back`` in the order in which the scalars use them."""

    front: tuple[int, ...]
    back: tuple[int, ...]


def step_seeds(rule: StepRule, job_seed: int, round_index: int, device: str, step: int) -> StepSeeds:
    """Derive the seeds of one step. ``back`` has P1·P2 entries, i before j, in ``nested``, P2 in ``clean``."""
    p1, p2 = rule.front_perturbations, rule.back_perturbations
    outer = p1 if rule.variant == "nested" else 1
    return StepSeeds(
        front=tuple(seeds.front_seed(job_seed, round_index, device, step, i) for i in range(p1)),
        back=tuple(seeds.back_seed(job_seed, round_index, device, step, i, j) for i in range(outer) for j in range(p2)),
    )


@dataclass(frozen=True)
class StepResult:
    """What a step measured.

    Attributes:
        scalars: projected gradients, float32, (scalars_per_step,): g_ij with i before j, or g_i and then h_j.
        loss: mean of all losses seen, near the clean loss.
        front_passes: runs of the front block.
        back_passes: runs of the back block.
    """

    scalars: FloatVector
    loss: float
    front_passes: int
    back_passes: int


def spzo_step(
    engine: Engine[BoundaryT], theta: FloatVector, batch: Batch, rule: StepRule, step_seeds: StepSeeds
) -> StepResult:
    """Measure the projected gradients of one batch; ``theta`` stays as it is.

    Args:
        engine: the two blocks; its workspaces are overwritten.
        theta: trainable parameters, float32, (front size + back size,).
        batch: the rows.
        rule: how to perturb.
        step_seeds: the directions.

    Raises:
        TrainingError: a loss is not finite, or theta's length does not fit the engine.
    """
    if theta.size != engine.front_workspace.size + engine.back_workspace.size:
        raise TrainingError(
            f"theta has {theta.size} parameters, the engine {engine.front_workspace.size + engine.back_workspace.size}",
            "use the adapter and the split of the same bundle",
        )
    run = _nested if rule.variant == "nested" else _clean
    pairs, front_passes = run(_Blocks(engine, theta), batch, rule, step_seeds)
    losses = [loss for pair in pairs for loss in pair]
    if not all(math.isfinite(loss) for loss in losses):
        raise TrainingError(
            f"a loss is not finite ({next(loss for loss in losses if not math.isfinite(loss))})",
            "lower learning_rate or eps in the job, or look for broken rows with: covey-edge data check",
        )
    scalars = np.array([(plus - minus) / (2 * rule.eps) for plus, minus in pairs], dtype=np.float32)
    return StepResult(scalars, math.fsum(losses) / len(losses), front_passes, len(losses))


class _Blocks:
    """An engine with a clean theta: each run writes the perturbed block to the workspace first."""

    def __init__(self, engine: Engine[BoundaryT], theta: FloatVector) -> None:
        self._engine = engine
        self._front = theta[: engine.front_workspace.size]
        self._back = theta[engine.front_workspace.size :]

    @property
    def front_is_frozen(self) -> bool:
        return self._front.size == 0

    def front(self, batch: Batch, seed: int | None = None, scale: float = 0.0) -> object:
        _write(self._engine.front_workspace, self._front, seed, FRONT, scale)
        return self._engine.front(batch)

    def back(self, boundary: object, batch: Batch, seed: int | None = None, scale: float = 0.0) -> float:
        _write(self._engine.back_workspace, self._back, seed, BACK, scale)
        return self._engine.back(boundary, batch)  # type: ignore[arg-type]


def _write(workspace: FloatVector, clean: FloatVector, seed: int | None, block: int, scale: float) -> None:
    if seed is None:
        np.copyto(workspace, clean)
    else:
        perturb_into(workspace, clean, seed, block, scale)


def _nested(
    blocks: _Blocks, batch: Batch, rule: StepRule, step_seeds: StepSeeds
) -> tuple[list[tuple[float, float]], int]:
    pairs: list[tuple[float, float]] = []
    eps, p2 = rule.eps, rule.back_perturbations
    frozen = blocks.front(batch) if blocks.front_is_frozen else None
    for i, front in enumerate(step_seeds.front):
        plus = frozen if frozen is not None else blocks.front(batch, front, eps)
        minus = frozen if frozen is not None else blocks.front(batch, front, -eps)
        pairs += [
            (blocks.back(plus, batch, back, eps), blocks.back(minus, batch, back, -eps))
            for back in step_seeds.back[i * p2 : (i + 1) * p2]
        ]
    return pairs, 1 if frozen is not None else 2 * len(step_seeds.front)


def _clean(
    blocks: _Blocks, batch: Batch, rule: StepRule, step_seeds: StepSeeds
) -> tuple[list[tuple[float, float]], int]:
    pairs: list[tuple[float, float]] = []
    eps = rule.eps
    for front in step_seeds.front:
        plus = blocks.back(blocks.front(batch, front, eps), batch)
        pairs.append((plus, blocks.back(blocks.front(batch, front, -eps), batch)))
    boundary = blocks.front(batch)
    pairs += [
        (blocks.back(boundary, batch, back, eps), blocks.back(boundary, batch, back, -eps)) for back in step_seeds.back
    ]
    return pairs, 2 * len(step_seeds.front) + 1
