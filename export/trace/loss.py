"""Traces the model's loss as an exported program, or evaluates it eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import IGNORED
from export.errors import ExportError
from export.quiet import quiet
from export.trace.batches import example_batch, size_bounds, sizes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.model.build import ExportModel
    from export.source.folder import ModelFolder


def forget_traces() -> None:
    """Make what is traced next independent of what this process has traced.

    A size that was fixed in another model's scan is remembered as one that a dynamic size cannot have.
    """
    torch._dynamo.reset()  # noqa: SLF001 it has no public name


def trace(model: ExportModel, folder: ModelFolder) -> ExportedProgram:
    """Trace the loss and what else the task gives, with dynamic numbers of rows and tokens.

    Raises:
        ExportError: torch.export cannot trace the model.
    """
    batch = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in size_bounds(model.task).items()}
    shapes = {name: {axis: dims[size] for axis, size in enumerate(sizes(model.task)[name])} for name in batch}
    forget_traces()
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model.loss_model, tuple(batch.values()), dynamic_shapes=shapes)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"torch.export cannot trace the model: {error}", "report the model and versions") from error


def eager(model: ExportModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the first of the task's outputs as PyTorch gives them, by another way than the traced one.

    For causal-lm that is Hugging Face's own forward pass with all logits.
    """
    logits, labels = model.task_model(batch["input_ids"], batch["attention_mask"]), batch["labels"]
    if model.task.kind != CAUSAL_LM:
        return torch.nn.functional.cross_entropy(logits, labels), logits
    there = logits.flatten(0, 1)[batch["positions"].flatten()]
    losses = torch.nn.functional.cross_entropy(there, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.sum() / (labels != IGNORED).sum(), losses.reshape(labels.shape)
