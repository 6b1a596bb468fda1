"""Starts a new adapter's A from the activations of public rows: their directions instead of random ones.

The rows of A become the top right-singular vectors of a layer's inputs over all tokens of the rows. B stays zero, so
the model itself starts unchanged. The vectors are scaled so that A is as long as PEFT's own random start is on average,
and each points to where its largest entry is above 0: singular vectors have no sign.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.data.config import DataConfig
from edge_runtime.data.examples import Completion, read_prompts, read_rows
from edge_runtime.errors import CoveyError
from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.examples import Prompted
    from export.model.tasks import TaskModel

_BATCH = 16
_FLAG = "--lora-init activations"


def public_texts(path: Path, task: Task) -> list[str]:
    """Read rows of the task's own form; return the texts that a device's model would see. Labels are not used.

    Raises:
        ExportError: a row is invalid, or a conversation, which only a chat template makes a text.
    """
    try:
        if not task.labels:
            return [_continued(path, row) for row in read_prompts(DataConfig(str(path))).rows]
        template = (task.template or "{text}").replace("{mask}", task.mask_token or "")
        return [template.replace("{text}", row.text) for row in read_rows(path, task.labels)]
    except CoveyError as error:
        raise ExportError(f"{_FLAG}: {error.what}", error.hint) from error


def start_from_activations(task_model: TaskModel, tokenizer: Any, texts: Sequence[str], task: Task) -> None:
    """Set A of every LoRA module of a model from its inputs over some texts.

    Args:
        task_model: the model, wrapped by PEFT, with a new adapter; changed in place.
        tokenizer: a fast Hugging Face tokenizer.
        texts: what public_texts returns.
        task: the task.

    Raises:
        ExportError: no text has a token, or the inputs of a module have fewer directions than the adapter's rank.
    """
    modules = {
        name: module for name, module in task_model.model.named_modules() if "default" in getattr(module, "lora_A", {})
    }
    rows = [row for text in texts if (row := _encoded(tokenizer, text, task))]
    if not rows:
        raise ExportError(f"{_FLAG}: the tokenizer makes no token of any row", "give other rows")
    moments = _second_moments(task_model, modules, rows, task)
    with torch.no_grad():
        for name, module in modules.items():
            weight = module.lora_A["default"].weight
            weight.copy_(_basis(moments[name], weight.shape[0], name))


def _continued(path: Path, row: Prompted) -> str:
    if not isinstance(row, Completion):
        raise ExportError(
            f"{_FLAG}: {path} has conversations, of which this start makes no texts",
            "give rows of prompt and completion",
        )
    return row.prompt + row.completion


def _encoded(tokenizer: Any, text: str, task: Task) -> list[int]:
    tokens: list[int] = tokenizer(text, truncation=True, max_length=task.max_tokens)["input_ids"]
    return tokens


def _second_moments(
    task_model: TaskModel, modules: dict[str, Any], rows: Sequence[Sequence[int]], task: Task
) -> dict[str, torch.Tensor]:
    """Return XᵀX of each module's inputs X, one row for each token that is no padding: float64, (width, width)."""
    moments: dict[str, torch.Tensor] = {}
    real = torch.zeros(0, dtype=torch.bool)

    def hook_of(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0][real].to(torch.float64)
            moments[name] = moments.get(name, 0) + x.T @ x

        return hook

    hooks = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            for start in range(0, len(rows), _BATCH):
                chunk = rows[start : start + _BATCH]
                longest = max(len(row) for row in chunk)
                ids = torch.tensor([[*row, *[task.pad_token_id] * (longest - len(row))] for row in chunk])
                real = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in chunk])
                task_model(ids, real.to(torch.int64))
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _basis(moment: torch.Tensor, rank: int, name: str) -> torch.Tensor:
    """Return the scaled top eigenvectors of XᵀX, which are X's right-singular vectors: (rank, width)."""
    values, vectors = torch.linalg.eigh(moment)
    if rank > len(values) or float(values[-rank]) <= 1e-9 * float(values[-1]):
        raise ExportError(
            f"{_FLAG}: the inputs of {name} have fewer than {rank} directions over these rows",
            "give more rows, or a smaller --lora-r",
        )
    top = vectors[:, -rank:].flip(1).T
    largest = top.gather(1, top.abs().argmax(dim=1, keepdim=True))
    # PEFT draws A from ±1/√width: its rows are 1/√3 long on average.
    return top * largest.sign() / math.sqrt(3)
