"""The flat layout of full mode, where every weight is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.bundle.layout import Parameter, lay_out
from export.errors import ExportError
from export.model.address import address_of
from export.model.full import parameter_names, parameter_state
from export.model.names import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from export.source.folder import ModelFolder
    from export.trace.lift import Lifted


def make_layout(model: Any, lifted: Lifted, folder: ModelFolder) -> list[Parameter]:
    """Return the layout of all parameters that the task computes with, ordered by depth, then by name.

    A parameter outside the layers comes after them if the last split's back block needs it, and before them otherwise.

    Args:
        model: the bare model.
        lifted: its traced program, cut at every split.
        folder: the model's folder, for its depth.

    Raises:
        ExportError: a parameter is not float32.
    """
    state, names = parameter_state(model), parameter_names(model)

    def own(sources: Iterable[str]) -> set[str]:
        # A tied weight has several names in the program, but one in the layout.
        return {names[address_of(lifted.state[source])] for source in sources}

    used = own(item.source for item in lifted.inputs if item.kind == "parameter")
    behind = own(lifted.back_parameters[max(lifted.back_parameters)])

    def layer(name: str) -> int:
        inside = layer_of(name)
        return inside if inside is not None else folder.layers if name in behind else 0

    for name in sorted(used):
        if state[name].dtype != torch.float32:
            raise ExportError(f"{name} is {state[name].dtype}, not float32", "give a model with float32 weights")
    return lay_out({name: state[name].shape for name in used}, layer)
