"""Personal and shared layers (PTLS): how important a layer is on this device, and which layers stay here.

Our reading of DropPEFT: a layer's importance is the mean norm of the gradient of its adapter over the mini-batches in
which it was active; the most important share of the layers stays personal, the others are sent. Other criteria, for
the ablation: ``fisher`` (mean square of the gradient), ``update`` (how far the layer moved), ``random`` and ``depth``
(the deeper, the more important).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.layer_dropout import Criterion
    from edge_runtime.values import FloatVector


class LayerStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """Statistics of each layer over a job's mini-batches, kept over rounds.

    Attributes:
        batches: mini-batches in which the layer was active.
        norms: sum of the gradients' norms over these.
        squares: sum of the squared norms.
        moves: sum over rounds of how far the layer moved.
        rounds: rounds in which it was active.
    """

    batches: list[int]
    norms: list[float]
    squares: list[float]
    moves: list[float]
    rounds: list[int]

    @classmethod
    def of(cls, layers: int) -> LayerStatistics:
        """Return empty statistics of a number of layers."""
        return cls([0] * layers, [0.0] * layers, [0.0] * layers, [0.0] * layers, [0] * layers)

    def copy(self) -> LayerStatistics:
        """Return an independent copy."""
        return LayerStatistics(*(list(column) for column in msgspec.structs.astuple(self)))

    def add_batch(self, layer: int, norm: float) -> None:
        """Record the gradient norm of a layer that was active in a mini-batch."""
        self.batches[layer] += 1
        self.norms[layer] += norm
        self.squares[layer] += norm * norm

    def add_round(self, layer: int, move: float) -> None:
        """Record how far a layer moved in a round in which it was active."""
        self.rounds[layer] += 1
        self.moves[layer] += move


def importance(statistics: LayerStatistics, criterion: Criterion, seed: int) -> list[float | None]:
    """Return each layer's importance; None: the layer has never been active.

    Args:
        statistics: the device's statistics.
        criterion: what makes a layer important.
        seed: for ``random``.
    """
    layers = len(statistics.batches)
    seen = [count > 0 for count in statistics.batches]
    if criterion == "depth":
        values: Sequence[float] = [float(layer) for layer in range(layers)]
    elif criterion == "random":
        values = np.random.Generator(np.random.PCG64(seed)).random(layers).tolist()
    else:
        sums, counts = {
            "gradient": (statistics.norms, statistics.batches),
            "fisher": (statistics.squares, statistics.batches),
            "update": (statistics.moves, statistics.rounds),
        }[criterion]
        values = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
    return [value if known else None for value, known in zip(values, seen, strict=True)]


def personal_layers(importances: Sequence[float | None], share: float) -> list[int]:
    """Return the layers that stay personal, ascending: the most important ``share`` of those with trained parameters.

    Args:
        importances: of each layer; None: not known, so it is not kept.
        share: of all layers whose importance is known, rounded to the nearest number.
    """
    known = [(value, layer) for layer, value in enumerate(importances) if value is not None]
    count = int(share * len(known) + 0.5)
    return sorted(layer for _, layer in sorted(known, key=lambda entry: (-entry[0], entry[1]))[:count])


def overlay(theta: FloatVector, personal: Mapping[int, FloatVector], layers: Sequence[slice]) -> FloatVector:
    """Return a copy of the shared adapter in which the device's own layers replace the shared ones.

    Args:
        theta: float32, (parameters,).
        personal: parameters of each personal layer, float32, as long as its slice.
        layers: where each layer lies.
    """
    mine: FloatVector = np.array(theta, dtype=np.float32)
    for layer, values in personal.items():
        mine[layers[layer]] = values
    return mine
