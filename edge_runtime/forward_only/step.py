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

``difference = "forward"`` replaces the loss at −eps by one clean loss per step (as FZOO and DeComFL do), and divides by
eps.

``b_ij``, the mean of the other g_ij' of the same i, is ours, not the paper's (``leave_one_out``): the g_ij share the
front's term, and subtracting their mean is unbiased because b_ij does not depend on z_ij.

The losses of one i, or of all j, may be measured in one call for many perturbed adapters (``stack``): the same losses
up to the rounding of float32.

A front block without trainable parameters is run once, unperturbed. Where the rule freezes the front, both variants are
the second half of ``clean``: y = front(θf) once, and P2 back directions around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.coefficients import Terms
from edge_runtime.forward_only.moment import add_shaped
from edge_runtime.perturbation.perturb import BACK, FRONT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.engine import BackStack, Engine
    from edge_runtime.forward_only.directions import StepSeeds
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

BoundaryT = TypeVar("BoundaryT")


@dataclass(frozen=True)
class StepResult:
    """What a step measured.

    Attributes:
        scalars: projected gradients, float32, (scalars_per_step,): g_ij with i before j, or g_i and then h_j.
        loss: mean of all losses seen, near the clean loss.
        front_passes: runs of the front block.
        back_passes: runs of the back block; one for each adapter, also where a call runs many.
    """

    scalars: FloatVector
    loss: float
    front_passes: int
    back_passes: int


def spzo_step(
    engine: Engine[BoundaryT],
    theta: FloatVector,
    batch: Batch,
    rule: StepRule,
    step_seeds: StepSeeds,
    pending: Terms | None = None,
    shape: FloatVector | None = None,
    stack: BackStack[Any] | None = None,
) -> StepResult:
    """Measure the projected gradients of one batch; ``theta`` stays as it is.

    Args:
        engine: the two blocks; its workspaces are overwritten.
        theta: trainable parameters, float32, (front size + back size,).
        batch: the rows.
        rule: how to perturb.
        step_seeds: the directions.
        pending: updates since ``theta`` that are not in it. The step measures at theta plus these, bit for bit as if
            they had been added one after the other, so that a model of which memory holds only one copy can train.
        shape: factors of the directions and of the pending updates, float32, (parameters,); None: all are 1. See
            moment.py.
        stack: runs the back for many adapters in one call, at the engine's split; None: one after the other.

    Raises:
        TrainingError: a loss is not finite, or theta's length does not fit the engine.
    """
    if theta.size != engine.front_workspace.size + engine.back_workspace.size:
        raise TrainingError(
            f"theta has {theta.size} parameters, the engine {engine.front_workspace.size + engine.back_workspace.size}",
            "use the adapter and the split of the same bundle",
        )
    blocks = _Blocks(engine, theta, pending or Terms(), batch, shape, stack)
    run = _nested if rule.is_nested else _clean
    pairs = run(blocks, rule, step_seeds)
    if not all(math.isfinite(loss) for loss in blocks.losses):
        raise TrainingError(
            f"a loss is not finite ({next(loss for loss in blocks.losses if not math.isfinite(loss))})",
            "lower learning_rate or eps in the job, or look for broken rows with: covey-edge data check",
        )
    distance = rule.eps if rule.difference == "forward" else 2 * rule.eps
    scalars = np.array([(plus - minus) / distance for plus, minus in pairs], dtype=np.float32)
    loss = math.fsum(blocks.losses) / len(blocks.losses)
    return StepResult(scalars, loss, blocks.front_passes, len(blocks.losses))


class _Blocks:
    """An engine with a clean theta: before each run, the parts that the run reads are perturbed into the workspace."""

    def __init__(
        self,
        engine: Engine[BoundaryT],
        theta: FloatVector,
        pending: Terms,
        batch: Batch,
        shape: FloatVector | None,
        stack: BackStack[Any] | None,
    ) -> None:
        self._engine, self._stack = engine, stack
        self._batch = batch
        self._front_reads, self._back_reads = engine.front_reads(batch), engine.back_reads(batch)
        self._front = theta[: engine.front_workspace.size]
        self._back = theta[engine.front_workspace.size :]
        self._front_shape = None if shape is None else shape[: engine.front_workspace.size]
        self._back_shape = None if shape is None else shape[engine.front_workspace.size :]
        self._pending = pending
        self.front_passes = 0
        self.losses: list[float] = []

    @property
    def front_is_frozen(self) -> bool:
        return self._front.size == 0

    def front(self, seed: int | None = None, scale: float = 0.0) -> object:
        terms = self._pending.front if seed is None else [*self._pending.front, (seed, scale)]
        for part in self._front_reads:
            shape = None if self._front_shape is None else self._front_shape[part]
            add_shaped(self._engine.front_workspace[part], self._front[part], terms, FRONT, part.start, shape)
        self.front_passes += 1
        return self._engine.front(self._batch)

    def back(self, boundary: object, seed: int | None = None, scale: float = 0.0) -> float:
        self._write_back(self._engine.back_workspace, seed, scale)
        self.losses.append(self._engine.back(boundary, self._batch))  # type: ignore[arg-type]
        return self.losses[-1]

    def backs(self, boundary: object, perturbed: Sequence[tuple[int, float]]) -> list[float]:
        """Return the loss of each perturbed back block, given as seed and scale: as many in a call as the stack takes.

        A call of one is made without the stack.
        """
        most = 1 if self._stack is None else len(self._stack.workspace)
        found: list[float] = []
        for first in range(0, len(perturbed), most):
            chunk = perturbed[first : first + most]
            if self._stack is None or len(chunk) == 1:
                found += [self.back(boundary, seed, scale) for seed, scale in chunk]
                continue
            for row, (seed, scale) in zip(self._stack.workspace, chunk, strict=False):
                self._write_back(row, seed, scale)
            losses = self._stack.losses(boundary, self._batch, len(chunk))
            self.losses += losses
            found += losses
        return found

    def _write_back(self, out: FloatVector, seed: int | None, scale: float) -> None:
        terms = self._pending.back if seed is None else [*self._pending.back, (seed, scale)]
        for part in self._back_reads:
            shape = None if self._back_shape is None else self._back_shape[part]
            add_shaped(out[part], self._back[part], terms, BACK, part.start, shape)


def _nested(blocks: _Blocks, rule: StepRule, step_seeds: StepSeeds) -> list[tuple[float, float]]:
    pairs: list[tuple[float, float]] = []
    eps, p2, one_sided = rule.eps, rule.back_perturbations, rule.difference == "forward"
    clean = blocks.front() if one_sided or blocks.front_is_frozen else None
    clean_loss = blocks.back(clean) if one_sided else None
    for i, front in enumerate(step_seeds.front):
        plus = clean if blocks.front_is_frozen else blocks.front(front, eps)
        minus = clean if blocks.front_is_frozen or one_sided else blocks.front(front, -eps)
        pairs += _back_pairs(blocks, plus, minus, step_seeds.back[i * p2 : (i + 1) * p2], eps, clean_loss)
    return pairs


def _clean(blocks: _Blocks, rule: StepRule, step_seeds: StepSeeds) -> list[tuple[float, float]]:
    pairs: list[tuple[float, float]] = []
    eps, one_sided = rule.eps, rule.difference == "forward"
    clean = blocks.front()
    clean_loss = blocks.back(clean) if one_sided else None
    for front in step_seeds.front:
        # A frozen front has no directions; its scalars are 0 and cost no run.
        if blocks.front_is_frozen:
            pairs.append((0.0, 0.0))
            continue
        plus = blocks.back(blocks.front(front, eps))
        minus = blocks.back(blocks.front(front, -eps)) if clean_loss is None else clean_loss
        pairs.append((plus, minus))
    return pairs + _back_pairs(blocks, clean, clean, step_seeds.back, eps, clean_loss)


def adapters_at_once(rule: StepRule, *, has_front: bool) -> int:
    """Return how many perturbed back blocks a step measures at one activation.

    Args:
        rule: the step's rule.
        has_front: whether the front has trainable parameters.
    """
    two_activations = rule.is_nested and has_front
    return rule.back_perturbations * (1 if two_activations or rule.difference == "forward" else 2)


def _back_pairs(
    blocks: _Blocks, plus: object, minus: object, seeds: Sequence[int], eps: float, clean_loss: float | None
) -> list[tuple[float, float]]:
    """Return the two losses of each back direction, from the activations of the front's two signs.

    Where both signs start from one activation, a direction's two adapters follow each other: one call takes both. With
    a clean loss, it takes the place of the loss at −eps.
    """
    if clean_loss is not None:
        return [(loss, clean_loss) for loss in blocks.backs(plus, [(seed, eps) for seed in seeds])]
    if plus is minus:
        losses = blocks.backs(plus, [(seed, scale) for seed in seeds for scale in (eps, -eps)])
        return list(zip(losses[::2], losses[1::2], strict=True))
    above = blocks.backs(plus, [(seed, eps) for seed in seeds])
    return list(zip(above, blocks.backs(minus, [(seed, -eps) for seed in seeds]), strict=True))
