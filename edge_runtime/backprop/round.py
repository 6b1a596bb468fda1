"""One round on a backprop device: local steps with layer dropout on private rows. No network, no disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import seeds
from edge_runtime.backprop.adamw import AdamW, AdamWOptions
from edge_runtime.backprop.importance import LayerStatistics, importance, overlay, personal_layers
from edge_runtime.backprop.layer_draw import choose_layers, residual_scales
from edge_runtime.data.order import batch_indices
from edge_runtime.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.bundle.layers import LayerSlices
    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.engine import TrainingEngine
    from edge_runtime.protocol.layer_dropout import Stld
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class BackpropWork:
    """What a round asks of one device; see protocol.BackpropPlan.

    Attributes:
        levels: those that the device can hold, each with the rows that it runs at once.
    """

    job_seed: int
    round: int
    device: str
    stld: Stld
    level: int
    levels: Mapping[int, int]


@dataclass(frozen=True)
class Personal:
    """What a device keeps of a job: its own layers, by index (float32, as long as the layer), and what it saw."""

    layers: Mapping[int, FloatVector]
    statistics: LayerStatistics


@dataclass(frozen=True)
class BackpropResult:
    """What a round gave.

    Attributes:
        movement: float32, (parameters,): where the local model is, less where the round began; of use in ``sent`` and
            outside the layers.
        sent: layers that the server is to have, ascending: those that moved, and were and are shared.
        personal: what the device keeps.
        loss: mean of the steps' losses.
        layers_run: layers that mini-batches ran, counted over all steps.
    """

    movement: FloatVector
    sent: list[int]
    personal: Personal
    loss: float
    layers_run: int


def train_backprop(
    engine: TrainingEngine,
    theta: FloatVector,
    rows: Rows,
    work: BackpropWork,
    slices: LayerSlices,
    personal: Personal,
    on_step: Callable[[int, float], bool] = lambda _step, _loss: True,
) -> BackpropResult | None:
    """Run the local steps of a round; ``theta`` stays as it is.

    Args:
        engine: gives gradients.
        theta: the shared adapter, float32, (parameters,); may be mapped.
        rows: the private rows.
        work: what to do.
        slices: where the layers lie in theta.
        personal: the device's own layers, which take the place of the shared ones.
        on_step: told each step's index and loss; the round is given up when it returns False.

    Returns:
        The result, or None where the round was given up.

    Raises:
        BundleError: the bundle has no graph of this level.
        TrainingError: a loss or gradient is not finite.
    """
    stld, layers = work.stld, slices.layers
    start = overlay(theta, personal.layers, layers)
    local, gradient = start.copy(), np.zeros_like(start)
    optimizer = AdamW(start.size, AdamWOptions(stld.learning_rate, stld.weight_decay))
    statistics, losses, layers_run = personal.statistics.copy(), [], 0
    for step in range(stld.steps):
        rng = np.random.Generator(np.random.PCG64(seeds.layer_seed(work.job_seed, work.round, work.device, step)))
        active = choose_layers(rng, stld, len(layers), work.level, work.levels)
        indices = batch_indices(
            len(rows),
            stld.batch_size,
            work.round * stld.steps + step,
            lambda epoch: seeds.epoch_seed(work.job_seed, work.device, epoch),
        )
        scales = residual_scales(stld, len(layers), work.level, active)
        losses.append(mean_gradient(engine, local, active, rows, indices, work.levels[len(active)], gradient, scales))
        trained = [layer for layer in active if layers[layer].start < layers[layer].stop]
        parts = [*slices.rest, *(layers[layer] for layer in trained)]
        _check_finite(losses[-1], gradient, parts)
        for layer in trained:
            statistics.add_batch(layer, _norm(gradient, [layers[layer]]))
        if stld.clip_norm is not None:
            _clip(gradient, parts, stld.clip_norm)
        optimizer.step(local, gradient, parts)
        layers_run += len(active)
        if not on_step(step, losses[-1]):
            return None
    moved = [layer for layer, count in enumerate(statistics.batches) if count > personal.statistics.batches[layer]]
    movement: FloatVector = local - start
    for layer in moved:
        statistics.add_round(layer, _norm(movement, [layers[layer]]))
    seed = seeds.importance_seed(work.job_seed, work.device)
    kept = personal_layers(importance(statistics, stld.importance, seed), stld.personal_share)
    return BackpropResult(
        movement=movement,
        # A layer that was personal began elsewhere than the shared one: it is sent after it was shared for a round.
        sent=[layer for layer in moved if layer not in kept and layer not in personal.layers],
        personal=Personal({layer: local[layers[layer]].copy() for layer in kept}, statistics),
        loss=math.fsum(losses) / len(losses),
        layers_run=layers_run,
    )


def mean_gradient(
    engine: TrainingEngine,
    theta: FloatVector,
    layers: Sequence[int],
    rows: Rows,
    indices: Sequence[int],
    rows_at_once: int,
    out: FloatVector,
    scales: Sequence[float] | None = None,
) -> float:
    """Write the gradient of the mean loss of a batch to ``out``, run in micro-batches; return that loss.

    Args:
        engine: gives gradients.
        theta: where, float32, (parameters,).
        layers: the active layers, ascending.
        rows: the private rows.
        indices: the rows of the batch.
        rows_at_once: rows of a micro-batch.
        out: see TrainingEngine.gradients.
        scales: the same.
    """
    if len(indices) <= rows_at_once:
        return engine.gradients(theta, layers, rows.batch(indices), out, scales)
    batches = [rows.batch(indices[start : start + rows_at_once]) for start in range(0, len(indices), rows_at_once)]
    total, loss, part = sum(batch.loss_terms for batch in batches), 0.0, np.zeros_like(out)
    out[:] = 0
    for batch in batches:
        share = batch.loss_terms / total
        loss += share * engine.gradients(theta, layers, batch, part, scales)
        out += np.float32(share) * part
    return loss


def _norm(vector: FloatVector, parts: Sequence[slice]) -> float:
    return math.sqrt(math.fsum(float(np.square(vector[part], dtype=np.float64).sum()) for part in parts))


def _clip(gradient: FloatVector, parts: Sequence[slice], longest: float) -> None:
    norm = _norm(gradient, parts)
    if norm > longest:
        for part in parts:
            gradient[part] *= np.float32(longest / norm)


def _check_finite(loss: float, gradient: FloatVector, parts: Sequence[slice]) -> None:
    if not math.isfinite(loss) or not all(np.isfinite(gradient[part]).all() for part in parts):
        raise TrainingError(
            f"a loss or gradient is not finite (loss {loss})",
            "lower learning_rate in the job's [stld], or look for broken rows with: covey-edge data check",
        )
