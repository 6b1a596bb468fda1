"""Runs one row through a model, to see which of its modules run, and in which order: no name tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from export.model.tasks import TaskModel


def run_one_row(task_model: TaskModel, before: Mapping[Any, Callable[[], object]]) -> None:
    """Run a row of three tokens through a task's module.

    Args:
        task_model: the module.
        before: what is called each time before a module runs.
    """

    def hook(call: Callable[[], object]) -> Callable[..., None]:
        def ran(*_: Any) -> None:
            call()

        return ran

    hooks = [module.register_forward_pre_hook(hook(call)) for module, call in before.items()]
    tokens = [1, 1 if task_model.mask_token_id is None else task_model.mask_token_id, 1]
    try:
        with torch.no_grad():
            task_model(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.int64))
    finally:
        for one in hooks:
            one.remove()
