"""The final norm: the normalization between a language model's last layer and its output embedding."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.model.names import layer_of
from export.model.one_row import run_one_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.model.tasks import TaskModel


def final_norm(task_model: TaskModel) -> str:
    """Return the name of the final norm in a language model that PEFT has not wrapped yet.

    One row runs through the model, because architectures name it in many ways, and a masked language model has it in
    its head. What counts is the last module behind the layers that has weights of one dimension.

    Args:
        task_model: the task's module, around the bare model.

    Raises:
        ExportError: the model has none, as OPT-350M.
    """
    found: list[str] = []
    before: dict[Any, Callable[[], object]] = {}
    for name, module in task_model.model.named_modules():
        if layer_of(name) is not None:
            before[module] = found.clear
        elif getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            before[module] = functools.partial(found.append, name)
    run_one_row(task_model, before)
    if not found:
        raise ExportError(
            f"--train-norm: {type(task_model.model).__name__} has no norm between its last layer and its output "
            "embedding",
            "leave out --train-norm",
        )
    return found[-1]
