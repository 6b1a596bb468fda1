"""Layer dropout (STLD): which layers a mini-batch runs. At a top level nothing is drawn, see ``active_layers``.

Our reading of DropPEFT ("Efficient Federated Fine-Tuning of Large Language Models with Layer Dropout"; its body was not
available to us, the abstract was): every mini-batch draws its layers anew, a layer that is dropped passes its input
through, and the drop probabilities over depth follow a named shape. A level k is a mean or, with ``draw = "exact"``, a
number of active layers: one training graph with k layer slots serves every choice.

Residuals are not rescaled, unless a job says so: then what an active layer adds to its input counts by the inverse of
its probability to be active, as in stochastic depth, so that its expectation is what inference with all layers adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.levels import kind_of, top_level, trained_layers
from edge_runtime.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edge_runtime.bundle.levels import Level
    from edge_runtime.protocol.layer_dropout import Shape, Stld

Probabilities = np.ndarray[tuple[int], np.dtype[np.float64]]

_LEAST_SHARE = 0.5
_TRIES = 1000


def inclusion_probabilities(layers: int, level: int, shape: Shape) -> Probabilities:
    """Return the probability of each layer to be active; they add up to ``level``.

    The drop probabilities are proportional to a weight: the same for all layers (``uniform``), growing with depth
    (``incremental``), falling with depth (``decay``), or a bell around the middle (``normal``). No layer is active with
    less than half of the mean probability; what that takes away is spread over the others.

    Args:
        layers: L.
        level: k, 1 … L.
        shape: the name.

    Returns:
        float64, (layers,).

    Raises:
        ConfigError: the level is not 1 … L.
    """
    if not 1 <= level <= layers:
        raise ConfigError(f"{level} active layers of a model with {layers}", "choose one of the bundle's levels")
    depth = np.arange(layers, dtype=np.float64)
    middle = (layers - 1) / 2
    weights = {
        "uniform": np.ones(layers),
        "incremental": depth + 1,
        "decay": layers - depth,
        "normal": np.exp(-0.5 * ((depth - middle) / (layers / 4)) ** 2),
    }[shape]
    most = 1 - _LEAST_SHARE * level / layers
    drop = np.zeros(layers)
    free = np.ones(layers, dtype=np.bool_)
    while free.any():
        left = layers - level - drop[~free].sum()
        drop[free] = left * weights[free] / weights[free].sum()
        over = free & (drop > most)
        if not over.any():
            break
        drop[over] = most
        free &= ~over
    probabilities: Probabilities = 1 - drop
    return probabilities


def draw_layers(rng: np.random.Generator, probabilities: Probabilities, level: int) -> list[int]:
    """Draw exactly ``level`` layers with these inclusion probabilities.

    Systematic sampling over a random order (Goodman and Kish, 1950): the probabilities are laid end to end, and marks
    at distance 1 from a random start each pick the layer on which they fall.

    Args:
        rng: source of the draw.
        probabilities: float64, (layers,), each at most 1, adding up to ``level``.
        level: number of layers to draw.

    Returns:
        Layers, ascending.
    """
    order = rng.permutation(len(probabilities))
    ends = np.cumsum(probabilities[order])
    ends[-1] = level  # no mark lies beyond the end, whatever the sum's rounding
    picked = order[np.searchsorted(ends, rng.random() + np.arange(level), side="right")]
    return sorted(int(layer) for layer in picked)


def draw_bernoulli(rng: np.random.Generator, probabilities: Probabilities, levels: Collection[int]) -> list[int]:
    """Draw every layer independently, and repeat until their number is one of ``levels``.

    Args:
        rng: source of the draw.
        probabilities: float64, (layers,).
        levels: the allowed numbers of layers.

    Returns:
        Layers, ascending.

    Raises:
        BundleError: 1,000 draws give none of these numbers.
    """
    for _ in range(_TRIES):
        picked = np.flatnonzero(rng.random(len(probabilities)) < probabilities)
        if len(picked) in levels:
            return [int(layer) for layer in picked]
    raise BundleError(
        f"layers drawn one by one never are as many as a level of the bundle has ({sorted(levels)})",
        'export more levels, or set draw = "exact" in the job\'s [stld]',
    )


def choose_layers(rng: np.random.Generator, stld: Stld, layers: int, level: int, levels: Collection[int]) -> list[int]:
    """Return the layers of one mini-batch, ascending.

    Args:
        rng: source of the draw, one for each step.
        stld: shape and kind of draw.
        layers: L.
        level: the plan's level.
        levels: for ``bernoulli``, the levels of the bundle that the device can hold.
    """
    probabilities = inclusion_probabilities(layers, level, stld.shape)
    if stld.draw == "bernoulli":
        return draw_bernoulli(rng, probabilities, levels)
    return draw_layers(rng, probabilities, level)


def residual_scales(stld: Stld, layers: int, level: int, active: Sequence[int]) -> list[float] | None:
    """Return the factor on what each active layer adds to its input; None: they are not rescaled.

    Args:
        stld: whether residuals are rescaled, and the shape.
        layers: L.
        level: the plan's level.
        active: the layers of a mini-batch.
    """
    if not stld.rescale:
        return None
    probabilities = inclusion_probabilities(layers, level, stld.shape)
    return [float(1 / probabilities[layer]) for layer in active]


@dataclass(frozen=True)
class ActiveLayers:
    """The layers that one mini-batch trains.

    Attributes:
        layers: these layers, ascending.
        scales: the factor on what each adds to its input; None: 1.
        whole: whether the other layers run too, untrained; else they are absent.
    """

    layers: Sequence[int]
    scales: Sequence[float] | None = None
    whole: bool = False

    @property
    def level(self) -> Level:
        """The level of the graph that runs them."""
        return top_level(len(self.layers)) if self.whole else len(self.layers)


def active_layers(
    rng: np.random.Generator, stld: Stld, n_layers: int, level: Level, levels: Collection[Level]
) -> ActiveLayers:
    """Return the layers that one mini-batch trains: at a top level the last ones, else drawn anew.

    Args:
        rng: source of the draw, one for each step.
        stld: shape and kind of draw, and whether residuals are rescaled.
        n_layers: L.
        level: the plan's level.
        levels: the levels of the bundle that the device can hold.
    """
    trained = trained_layers(level)
    if kind_of(level) == "top":
        return ActiveLayers(range(n_layers - trained, n_layers), whole=True)
    dropouts = [trained_layers(other) for other in levels if kind_of(other) == "drop"]
    layers = choose_layers(rng, stld, n_layers, trained, dropouts)
    return ActiveLayers(layers, residual_scales(stld, n_layers, trained, layers))
