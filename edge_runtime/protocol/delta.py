"""Deltas: the movement of one device's shared layers in a round, as a safetensors file.

It holds the tensors of the layers that are sent and those outside the layers, with the layout's names and shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.layout import total_size, views
from edge_runtime.errors import BundleError, ProtocolError
from edge_runtime.files.tensor_file import encode_tensors, map_tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.values import FloatVector

_HEADER_BYTES_A_TENSOR = 512
_LARGEST_ADAM_STEP = 3.2
"""|mean / √square| of Adam with the usual decays never exceeds (1 − β1) / √(1 − β2) = 3.17."""


def sent_parameters(parameters: Sequence[Parameter], layers: Collection[int], n_layers: int) -> list[Parameter]:
    """Return the tensors of a delta: those of these layers, and those outside the layers."""
    return [p for p in parameters if p.layer in layers or not 0 <= p.layer < n_layers]


def most_bytes(parameters: Sequence[Parameter]) -> int:
    """Return an upper bound of the bytes of a delta of this layout."""
    return 4 * total_size(parameters) + _HEADER_BYTES_A_TENSOR * (len(parameters) + 1)


def encode_delta(
    movement: FloatVector, parameters: Sequence[Parameter], layers: Collection[int], n_layers: int
) -> bytes:
    """Return the file of a movement, float32 (parameters,), without the entries of other layers."""
    tensors = views(movement, parameters)
    return encode_tensors({p.name: tensors[p.name] for p in sent_parameters(parameters, layers, n_layers)}, {})


def read_delta(path: Path, parameters: Sequence[Parameter], layers: Collection[int], n_layers: int) -> FloatVector:
    """Read a delta.

    Returns:
        The movement, float32, (parameters,); 0 where nothing was sent.

    Raises:
        ProtocolError: it cannot be read, holds other tensors or shapes than it should, or values that are not finite.
    """
    wanted = sent_parameters(parameters, layers, n_layers)
    try:
        tensors = map_tensors(path)
    except BundleError as error:
        raise ProtocolError(f"the delta cannot be read: {error.what}", "run covey-edge doctor on the device") from error
    if tensors.keys() != {p.name for p in wanted}:
        odd = sorted(tensors.keys() ^ {p.name for p in wanted})
        raise ProtocolError(
            f"the delta does not hold the tensors of layers {sorted(layers)}: {odd[0]} is missing or too many",
            "run the same version of Covey on the device and on the server",
        )
    movement: FloatVector = np.zeros(total_size(parameters), dtype=np.float32)
    for p in wanted:
        tensor = tensors[p.name]
        if list(tensor.shape) != p.shape or tensor.dtype != np.float32:
            raise ProtocolError(
                f"the delta's {p.name} is {tensor.dtype} {list(tensor.shape)}, the layout has float32 {p.shape}",
                "train the bundle of the plan",
            )
        if not np.isfinite(tensor).all():
            raise ProtocolError(
                f"the delta's {p.name} has values that are not finite", "run covey-edge doctor on the device"
            )
        movement[p.offset : p.stop] = tensor.reshape(-1)
    return movement


def check_norms(
    movement: FloatVector,
    theta: FloatVector,
    parameters: Sequence[Parameter],
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Check that AdamW can move this far in ``steps`` steps, with a factor of 2 to spare for rounding.

    Args:
        movement: float32, (parameters,).
        theta: the adapter before the round, float32, (parameters,).
        parameters: the layout.
        steps: local steps.
        learning_rate: the plan's.
        weight_decay: the plan's.

    Raises:
        ProtocolError: names the first tensor whose norm is too large.
    """
    for p in parameters:
        moved = float(np.linalg.norm(movement[p.offset : p.stop].astype(np.float64)))
        stood = float(np.linalg.norm(theta[p.offset : p.stop].astype(np.float64)))
        bound = 2 * steps * learning_rate * (_LARGEST_ADAM_STEP * p.size**0.5 + weight_decay * stood)
        if moved > bound:
            raise ProtocolError(
                f"the delta's {p.name} has norm {moved:.3g}; {steps} steps at {learning_rate:g} cannot give "
                f"more than {bound:.3g}",
                "run covey-edge doctor on the device",
            )
