"""Loss and gradients of a bundle's model in PyTorch eager, to compare training graphs with."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from peft import PeftModel
from tiny_models import LAYERS
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edge_runtime.data.batch import CompletionBatch, pad, pad_completions
from edge_runtime.engines.golden import golden_adapter
from export.finished import load_finished
from export.trace.gradients import active_layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector

HEAD, PROMPT, CAUSAL = "classify-head", "classify-prompt", "causal-lm"
POSITIONS = 64


def batches(bundle: Bundle) -> list[Batch]:
    """Return batches of shapes not traced: rows of different lengths, a single row, the longest row allowed."""
    rng = np.random.Generator(np.random.PCG64(4))
    task = bundle.manifest.task
    made: list[Batch] = []
    for lengths in ([4, 11, 2], [7], [task.max_tokens, 5]):
        rows = [rng.integers(4, 50, size=n).tolist() for n in lengths]
        if task.kind == CAUSAL:
            made.append(pad_completions(rows, [max(1, len(row) // 2) for row in rows], task.pad_token_id, 5))
            continue
        for index, row in enumerate(rows):
            if task.mask_token_id is not None:
                row[(7 * index + 1) % len(row)] = task.mask_token_id
        made.append(pad(rows, rng.integers(0, 2, len(rows)).tolist(), task.pad_token_id))
    return made


def eager_model(bundle: Bundle, kind: str, adapter: Path) -> torch.nn.Module:
    """Load Hugging Face's own class with PEFT's adapter from its file, as a user would."""
    model_dir, task = bundle.path.parents[1] / "models" / kind, bundle.manifest.task
    if task.kind == HEAD:
        return load_finished(adapter, model_dir).eval()
    auto = AutoModelForCausalLM if task.mask_token_id is None else AutoModelForMaskedLM
    return PeftModel.from_pretrained(auto.from_pretrained(model_dir), adapter).eval()


def eager_loss(model: torch.nn.Module, bundle: Bundle, batch: Batch) -> torch.Tensor:
    task = bundle.manifest.task
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    labels = torch.from_numpy(batch.labels)
    if task.kind == HEAD:
        return torch.nn.functional.cross_entropy(model(ids, mask), labels)
    logits = model(input_ids=ids, attention_mask=mask).logits
    if isinstance(batch, CompletionBatch):
        there = logits.flatten(0, 1)[torch.from_numpy(batch.positions).flatten()]
        return torch.nn.functional.cross_entropy(there, labels.flatten(), ignore_index=-100)
    position = mask.sum(dim=1) - 1
    if task.mask_token_id is not None:
        position = (ids == task.mask_token_id).nonzero()[:, 1]
    words = logits[torch.arange(len(ids)), position][:, task.label_token_ids]
    return torch.nn.functional.cross_entropy(words, labels)


def eager_gradients(
    model: torch.nn.Module, bundle: Bundle, layers: Sequence[int], batch: Batch, scales: Sequence[float] = ()
) -> tuple[float, dict[str, np.ndarray]]:
    """Return loss and gradients, by the layout's names, that autograd computes for a model with these layers alone.

    Each scale multiplies what its layer adds to its input.
    """
    names = {p.name for p in bundle.manifest.parameters}
    found = {
        name.removeprefix("model.").replace(".default", "").replace(".modules_to_save", ""): parameter
        for name, parameter in model.named_parameters()
    }
    prefix = "" if any(name in found for name in names) else "base_model.model."
    trained = {name: found[name.removeprefix(prefix)] for name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    with active_layers(model, layers, LAYERS) as active, contextlib.ExitStack() as stack:
        for layer, scale in zip(active, scales, strict=False):
            stack.callback(layer.register_forward_hook(functools.partial(rescaled, scale), with_kwargs=True).remove)
        loss = eager_loss(model, bundle, batch)
        values = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    gradients = {name: value.numpy() for name, value in zip(trained, values, strict=True) if value is not None}
    return loss.item(), gradients


def rescaled(scale: float, _layer: object, args: tuple, kwargs: dict, output: Any) -> Any:
    """Return a layer's output with what it adds to its input multiplied by a scale."""
    given = args[0] if args else kwargs["hidden_states"]
    value = output[0] if isinstance(output, tuple) else output
    made = given + scale * (value - given)
    return (made, *output[1:]) if isinstance(output, tuple) else made


def start(bundle: Bundle) -> FloatVector:
    return golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(bundle.manifest.golden, seed=78, scale=0.1))
