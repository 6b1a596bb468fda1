"""The parameter layout: where each trainable tensor lies in the flat vector.

Trainable parameters form one flat float32 vector, ordered by depth, so that for every split the front block is a
prefix and the back block the rest. Its little-endian bytes are the adapter file; their SHA-256 is the adapter's name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import BundleError
from edge_runtime.values import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.values import FloatVector


NAMES_FILE = "adapter/covey_names.json"
"""In a bundle of full mode: Hugging Face's names of the trained tensors that have another name there, or several."""


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trainable tensor.

    Attributes:
        name: its name in PEFT's adapter file.
        shape: its shape there.
        layer: index of its transformer layer; -1 before the first layer, the number of layers after the last.
        offset: index of its first element in the flat vector.
    """

    name: str
    shape: Annotated[list[Count], msgspec.Meta(max_length=16)]
    layer: Annotated[int, msgspec.Meta(ge=-1, le=4096)]
    offset: Count

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """One past its last element in the flat vector."""
        return self.offset + self.size


def lay_out(shapes: Mapping[str, Sequence[int]], layer: Callable[[str], int]) -> list[Parameter]:
    """Return the layout of tensors, ordered by depth, then by name.

    Args:
        shapes: of each tensor.
        layer: gives a tensor's layer by its name: see Parameter.
    """
    parameters: list[Parameter] = []
    for name in sorted(shapes, key=lambda name: (layer(name), name)):
        parameters.append(Parameter(name, list(shapes[name]), layer(name), total_size(parameters)))
    return parameters


def total_size(parameters: Sequence[Parameter]) -> int:
    """Return the length of the flat vector."""
    return parameters[-1].stop if parameters else 0


def front_size(parameters: Sequence[Parameter], split: int) -> int:
    """Return how many elements of the flat vector belong to the front block, the layers below ``split``."""
    return sum(parameter.size for parameter in parameters if parameter.layer < split)


def check_layout(parameters: Sequence[Parameter]) -> None:
    """Check that the tensors are ordered by depth and fill the flat vector without a gap.

    Raises:
        BundleError: names the first parameter that breaks a rule.
    """
    if not parameters:
        raise BundleError("the parameter layout is empty", "export with LoRA targets that occur in the model")
    offset, layer, seen = 0, parameters[0].layer, set[str]()
    for parameter in parameters:
        if parameter.name in seen:
            raise BundleError(f"parameter {parameter.name} occurs twice in the layout", "export the bundle again")
        if parameter.offset != offset or any(side < 1 for side in parameter.shape):
            raise BundleError(
                f"parameter {parameter.name}: offset {parameter.offset} or shape {parameter.shape} does not fit "
                f"(expected offset {offset})",
                "export the bundle again",
            )
        if parameter.layer < layer:
            raise BundleError(f"parameter {parameter.name} is out of depth order", "export the bundle again")
        offset, layer = parameter.stop, parameter.layer
        seen.add(parameter.name)


def views(flat: FloatVector, parameters: Sequence[Parameter]) -> dict[str, FloatVector]:
    """Return each tensor as a view into the flat vector; writing to one writes to the other.

    Raises:
        BundleError: the vector's length is not the layout's.
    """
    if flat.shape != (total_size(parameters),):
        raise BundleError(
            f"the adapter has shape {flat.shape}, the layout needs ({total_size(parameters)},)",
            "use the adapter that belongs to this bundle",
        )
    return {p.name: flat[p.offset : p.stop].reshape(p.shape) for p in parameters}
