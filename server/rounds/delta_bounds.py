"""Bounds on what one delta may do to a round, as ``[robust]`` sets them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.layout import total_size
from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.delta import sent_parameters
from server.rounds.delta_files import Scaled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.values import FloatVector
    from server.rounds.merge import Delta


def check_norm(movement: FloatVector, bound: float | None) -> None:
    """Check that a delta is not longer than the job allows; None: it allows any length.

    Raises:
        ProtocolError: it is longer.
    """
    norm = float(np.linalg.norm(movement.astype(np.float64)))
    if bound is not None and norm > bound:
        raise ProtocolError(
            f"the delta has norm {norm:.4g}, the job's max_delta_norm is {bound:g}",
            "raise max_delta_norm in the job's [robust] if honest devices reach it; else look at the device",
        )


def scaled_down(
    deltas: Mapping[str, Delta], parameters: Sequence[Parameter], n_layers: int, ratio: float
) -> dict[str, Delta]:
    """Return the deltas of a round, those above the bound scaled down to it.

    A delta is measured by its root mean square over the parameters that it holds, so that devices with more layers
    are not taken for larger ones. The bound is ``ratio`` × the lower median of the round: every device has one vote.

    Args:
        deltas: what the devices sent, by device.
        parameters: the layout.
        n_layers: L.
        ratio: 1 or more.
    """
    sizes = {name: _root_mean_square(delta, parameters, n_layers) for name, delta in deltas.items()}
    bound = ratio * statistics.median_low(sizes.values())
    return {
        name: delta
        if sizes[name] <= bound or bound <= 0
        else dataclasses.replace(delta, movement=Scaled(delta.movement, np.float32(bound / sizes[name])))
        for name, delta in deltas.items()
    }


def _root_mean_square(delta: Delta, parameters: Sequence[Parameter], n_layers: int) -> float:
    held = sum(p.size for p in sent_parameters(parameters, delta.layers, n_layers))
    movement = delta.movement[0 : total_size(parameters)]
    return float(np.linalg.norm(movement.astype(np.float64))) / math.sqrt(max(held, 1))
