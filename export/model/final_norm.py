"""The final norm: the normalization between a language model's last layer and its output embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from export.errors import ExportError
from export.model.names import layer_of

if TYPE_CHECKING:
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
    hooks = []

    def note(name: str, module: Any) -> Any:
        def ran(*_: Any) -> None:
            if layer_of(name) is not None:
                found.clear()
            elif getattr(module, "weight", None) is not None and module.weight.ndim == 1:
                found.append(name)

        return ran

    for name, module in task_model.model.named_modules():
        hooks.append(module.register_forward_pre_hook(note(name, module)))
    tokens = [1, 1 if task_model.mask_token_id is None else task_model.mask_token_id, 1]
    try:
        with torch.no_grad():
            task_model(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.int64))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ExportError(
            f"--train-norm: {type(task_model.model).__name__} has no norm between its last layer and its output "
            "embedding",
            "leave out --train-norm",
        )
    return found[-1]
