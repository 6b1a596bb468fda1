"""One round on a backprop device: local steps on private rows, with layer dropout or of the last layers.

No network, no disk.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import seeds
from edge_runtime.backprop.adamw import AdamW, AdamWOptions
from edge_runtime.backprop.importance import LayerStatistics, importance, overlay, personal_layers
from edge_runtime.backprop.layer_draw import active_layers
from edge_runtime.data.order import batch_indices
from edge_runtime.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from edge_runtime.backprop.layer_draw import ActiveLayers
    from edge_runtime.bundle.layers import LayerSlices
    from edge_runtime.bundle.levels import Level
    from edge_runtime.data.batch import Batch
    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.engine import TrainingEngine
    from edge_runtime.protocol.layer_dropout import Stld
    from edge_runtime.protocol.plans import BackpropPlan
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class BackpropSettings:
    """The settings of one device's round; see plans.BackpropPlan for the other fields.

    Attributes:
        rows_at_once: for each level that fits into the device's memory, the rows of one micro-batch.
    """

    job_seed: int
    round: int
    device: str
    stld: Stld
    level: Level
    rows_at_once: Mapping[Level, int]

    @classmethod
    def of_plan(cls, plan: BackpropPlan, device: str, rows_at_once: Mapping[Level, int]) -> BackpropSettings:
        """Return a plan's settings for the device of this name."""
        return cls(plan.job_seed, plan.round, device, plan.stld, plan.level, rows_at_once)


@dataclass(frozen=True)
class Personal:
    """What a device keeps of a job: its own layers by index, each float32, (layer size,), and layer statistics."""

    layers: Mapping[int, FloatVector]
    statistics: LayerStatistics


@dataclass(frozen=True)
class BackpropResult:
    """What a round gave.

    Attributes:
        movement: local model minus the model at the round's start, float32, (parameters,); meaningful for the layers in
            ``sent`` and outside the layers.
        sent: layers whose movement goes to the server, ascending: those that moved, and were and are shared.
        personal: what the device keeps.
        loss: mean of the steps' losses.
        seconds: duration of the round.
        layers_trained: layers that mini-batches trained, summed over all steps.
        front_hits: rows of the steps' batches whose front activation was kept; None: the front was not looked up.
        front_misses: rows for which the front was run; None as above.
    """

    movement: FloatVector
    sent: list[int]
    personal: Personal
    loss: float
    seconds: float
    layers_trained: int
    front_hits: int | None = None
    front_misses: int | None = None


def train_backprop(
    engine: TrainingEngine,
    theta: FloatVector,
    rows: Rows,
    settings: BackpropSettings,
    slices: LayerSlices,
    personal: Personal,
    on_step: Callable[[int, float], bool] = lambda _step, _loss: True,
    clock: Callable[[], float] = time.monotonic,
) -> BackpropResult | None:
    """Run the local steps of a round; ``theta`` stays as it is.

    Args:
        engine: gives gradients.
        theta: the shared adapter, float32, (parameters,); may be mapped.
        rows: the private rows.
        settings: the round's settings.
        slices: where the layers lie in theta.
        personal: the device's own layers, which replace the shared ones.
        on_step: called after each step with its index and loss; the round is abandoned when it returns False.
        clock: monotonic seconds.

    Returns:
        The result; None: the round was abandoned.

    Raises:
        BundleError: the bundle has no graph of this level.
        TrainingError: a loss or gradient is not finite.
    """
    started, stld, layers = clock(), settings.stld, slices.layers
    start = overlay(theta, personal.layers, layers)
    local, gradient, losses, layers_trained = start.copy(), np.zeros_like(start), [], 0
    optimizer = AdamW(start.size, AdamWOptions(stld.learning_rate, stld.weight_decay))
    statistics = personal.statistics.copy()
    for step in range(stld.steps):
        active = _draw(settings, step, len(layers))
        batches = _micro_batches(rows, settings, step, settings.rows_at_once[active.level])
        losses.append(mean_gradient(engine, local, active, batches, gradient))
        trained = [layer for layer in active.layers if layers[layer].start < layers[layer].stop]
        parts = [*slices.rest, *(layers[layer] for layer in trained)]
        _check_finite(losses[-1], gradient, parts)
        for layer in trained:
            statistics.add_batch(layer, _norm(gradient, [layers[layer]]))
        _clip(gradient, parts, stld.clip_norm)
        optimizer.step(local, gradient, parts)
        layers_trained += len(active.layers)
        if not on_step(step, losses[-1]):
            return None
    movement: FloatVector = local - start
    moved = _add_movement(statistics, personal.statistics, movement, layers)
    kept = _kept_layers(settings, statistics)
    return BackpropResult(
        movement=movement,
        # A personal layer did not start from the shared one: it is sent after it has been shared for a round.
        sent=[layer for layer in moved if layer not in kept and layer not in personal.layers],
        personal=Personal({layer: local[layers[layer]].copy() for layer in kept}, statistics),
        loss=math.fsum(losses) / len(losses),
        seconds=clock() - started,
        layers_trained=layers_trained,
    )


def _draw(settings: BackpropSettings, step: int, n_layers: int) -> ActiveLayers:
    """Draw the layers of a step's mini-batch."""
    seed = seeds.layer_seed(settings.job_seed, settings.round, settings.device, step)
    rng = np.random.Generator(np.random.PCG64(seed))
    return active_layers(rng, settings.stld, n_layers, settings.level, settings.rows_at_once)


def rows_of_round(n_rows: int, settings: BackpropSettings) -> list[int]:
    """Return the indices of the rows that a round's steps use, each once, in the order of their first use."""
    steps = range(settings.stld.steps)
    return list(dict.fromkeys(row for step in steps for row in _rows_of_step(n_rows, settings, step)))


def _rows_of_step(n_rows: int, settings: BackpropSettings, step: int) -> list[int]:
    return batch_indices(
        n_rows,
        settings.stld.batch_size,
        settings.round * settings.stld.steps + step,
        lambda epoch: seeds.epoch_seed(settings.job_seed, settings.device, epoch),
    )


def _micro_batches(rows: Rows, settings: BackpropSettings, step: int, rows_at_once: int) -> list[Batch]:
    """Return the rows of a local step in micro-batches of at most ``rows_at_once`` rows."""
    indices = _rows_of_step(len(rows), settings, step)
    return [rows.batch(indices[start : start + rows_at_once]) for start in range(0, len(indices), rows_at_once)]


def mean_gradient(
    engine: TrainingEngine, theta: FloatVector, active: ActiveLayers, batches: Sequence[Batch], out: FloatVector
) -> float:
    """Write the gradient of the mean loss over a mini-batch to ``out``; return that loss.

    Args:
        engine: gives gradients.
        theta: trainable parameters, float32, (parameters,).
        active: the layers that the mini-batch trains.
        batches: the mini-batch in micro-batches, which run one after the other.
        out: see TrainingEngine.gradients.
    """
    if len(batches) == 1:
        return engine.gradients(theta, active.layers, batches[0], out, active.scales, whole=active.whole)
    total, loss, part = sum(batch.loss_terms for batch in batches), 0.0, np.zeros_like(out)
    out[:] = 0
    for batch in batches:
        share = batch.loss_terms / total
        loss += share * engine.gradients(theta, active.layers, batch, part, active.scales, whole=active.whole)
        out += np.float32(share) * part
    return loss


def _add_movement(
    statistics: LayerStatistics, before: LayerStatistics, movement: FloatVector, layers: Sequence[slice]
) -> list[int]:
    """Add a round's movement of each layer that was active in it to the statistics; return these layers, ascending."""
    moved = [layer for layer, count in enumerate(statistics.batches) if count > before.batches[layer]]
    for layer in moved:
        statistics.add_round(layer, _norm(movement, [layers[layer]]))
    return moved


def _kept_layers(settings: BackpropSettings, statistics: LayerStatistics) -> Collection[int]:
    """Return the layers that become personal: the most important ones of this device."""
    seed = seeds.importance_seed(settings.job_seed, settings.device)
    return personal_layers(importance(statistics, settings.stld.importance, seed), settings.stld.personal_share)


def _norm(vector: FloatVector, parts: Sequence[slice]) -> float:
    return math.sqrt(math.fsum(float(np.square(vector[part], dtype=np.float64).sum()) for part in parts))


def _clip(gradient: FloatVector, parts: Sequence[slice], longest: float | None) -> None:
    """Scale the gradient's parts down to the norm ``longest``; None: leave it as it is."""
    if longest is None:
        return
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
