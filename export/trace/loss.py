"""Traces the model's loss as an exported program, and evaluates it eagerly for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import IGNORED
from export.errors import REPORT_HINT, ExportError
from export.quiet import quiet
from export.trace.batches import size_bounds, sizes, traced_batch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from export.model.build import ExportModel


def forget_traces() -> None:
    """Make the next trace independent of what this process has traced before.

    torch remembers a size that was fixed in another model's scan, and excludes it from the values of a dynamic size.
    """
    torch._dynamo.reset()  # noqa: SLF001 torch has no public name for it


def trace(model: ExportModel) -> ExportedProgram:
    """Trace the loss and the task's outputs with dynamic sizes of the batch.

    Raises:
        ExportError: torch.export cannot trace the model.
    """
    batch = traced_batch(model)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in size_bounds(model.task).items()}
    shapes = {name: {axis: dims[size] for axis, size in enumerate(sizes(model.task)[name])} for name in batch}
    forget_traces()
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model.loss_model, tuple(batch.values()), dynamic_shapes=shapes)
    except ExportError:
        raise
    except Exception as error:  # torch.export raises exceptions of many types
        raise ExportError(
            f"torch.export cannot trace the model: {type(error).__name__}: {error}", REPORT_HINT
        ) from error


def eager(model: ExportModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the first of the task's outputs, computed eagerly and by other code than the traced one.

    For causal-lm, this is Hugging Face's own forward pass with all logits.
    """
    logits, labels = model.task_model(batch["input_ids"], batch["attention_mask"]), batch["labels"]
    if model.task.kind != CAUSAL_LM:
        return torch.nn.functional.cross_entropy(logits, labels), logits
    there = logits.flatten(0, 1)[batch["positions"].flatten()]
    losses = torch.nn.functional.cross_entropy(there, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.sum() / (labels != IGNORED).sum(), losses.reshape(labels.shape)
