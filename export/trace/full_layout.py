"""The flat layout where every weight is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.bundle.layout import Parameter, lay_out
from export.errors import ExportError
from export.model.full import parameter_names, parameter_state
from export.model.names import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.export import ExportedProgram

    from export.source.folder import ModelFolder
    from export.trace.lift import Lifted


def make_layout(model: Any, program: ExportedProgram, lifted: Lifted, folder: ModelFolder) -> list[Parameter]:
    """Return the layout of all parameters that the task computes with, ordered by depth, then by name.

    What stands outside the layers belongs behind them if the back needs it, else before them.

    Raises:
        ExportError: a parameter is not float32.
    """
    state, names = parameter_state(model), parameter_names(model)

    def own(sources: Iterable[str]) -> set[str]:
        # A tied weight has several names in the program, and one here.
        return {names[program.state_dict[source].data_ptr()] for source in sources}

    used = own(item.source for item in lifted.inputs if item.kind == "parameter")
    behind = own(lifted.back_parameters[max(lifted.back_parameters)])

    def layer(name: str) -> int:
        inside = layer_of(name)
        return inside if inside is not None else folder.layers if name in behind else 0

    for name in sorted(used):
        if state[name].dtype != torch.float32:
            raise ExportError(f"{name} is {state[name].dtype}, not float32", "export the model in float32")
    return lay_out({name: state[name].shape for name in used}, layer)
