"""Maps layers to slices of the flat parameter vector, and the slots of training graphs to layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.layout import total_size
from edge_runtime.errors import BundleError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import GraphInput, GraphOutput, Manifest

LAYER_FIELD = "{layer}"


@dataclass(frozen=True)
class LayerSlices:
    """Slices of the flat vector.

    Attributes:
        layers: the entries of each transformer layer, by its index; empty for a layer in which nothing is trained.
        rest: the entries before and after the layers, such as a head's. Every entry is in exactly one slice.
    """

    layers: tuple[slice, ...]
    rest: tuple[slice, ...]


def layer_slices(manifest: Manifest) -> LayerSlices:
    """Return the slice of each layer; there is one per layer because the layout is ordered by depth."""
    parameters = manifest.parameters
    layers = tuple(
        slice(_size_below(parameters, layer), _size_below(parameters, layer + 1))
        for layer in range(manifest.model.layers)
    )
    rest = (slice(0, layers[0].start), slice(layers[-1].stop, total_size(parameters)))
    return LayerSlices(layers, tuple(part for part in rest if part.start < part.stop))


def _size_below(parameters: Sequence[Parameter], layer: int) -> int:
    return max((parameter.stop for parameter in parameters if parameter.layer < layer), default=0)


def source_of(tensor: GraphInput | GraphOutput, layers: Sequence[int] | Mapping[int, int]) -> str:
    """Return the name of the tensor that is bound to an input, or that a gradient belongs to.

    Args:
        tensor: an input or a gradient of a graph.
        layers: of a training graph, the active layer of each slot, ascending.
    """
    source = tensor.source or ""
    return source if tensor.slot is None else source.replace(LAYER_FIELD, str(layers[tensor.slot]))


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Check a choice of active layers.

    Raises:
        TrainingError: a layer does not exist, occurs twice, or is out of ascending order.
    """
    ascending = all(below < above for below, above in itertools.pairwise(layers))
    if not ascending or not all(0 <= layer < n_layers for layer in layers):
        raise TrainingError(
            f"active layers {list(layers)} of a model with {n_layers}", "give different layers, in ascending order"
        )


def check_last(layers: Sequence[int], n_layers: int) -> None:
    """Check that layers are the last ones of a model.

    Raises:
        TrainingError: they are not.
    """
    if list(layers) != list(range(n_layers - len(layers), n_layers)):
        raise TrainingError(
            f"layers {list(layers)} are not the last {len(layers)} of {n_layers}",
            "a top level trains the last layers of the model",
        )


def no_scales() -> BundleError:
    """Return the error of a bundle whose training graphs take no scales."""
    return BundleError("the bundle's training graphs do not rescale residuals", "export it with --levels and --rescale")
