"""PEFT adapters of many kinds on tiny models, as folders, and what PEFT itself makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from parity import batches
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from edge_runtime.data.batch import pad
from export.model.options import LoraOptions, TaskOptions

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.data.batch import Batch
    from export.model.build import ExportModel

AUTO = {"-classifier": AutoModelForSequenceClassification, "-mlm": AutoModelForMaskedLM}
WORDS = TaskOptions("classify-prompt", ["bad", "good"], "{text} it was", [" bad", " good"], 32, None, None, None)
MASK = TaskOptions("classify-prompt", ["bad", "good"], "{text} it was {mask}", ["bad", "good"], 32, None, None, None)
HEAD = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
ADAPTER = LoraOptions(8, 16.0, [], None, ["B"], seed=0)


def auto_of(kind: str) -> Any:
    """Return the Auto class of a tiny model."""
    return next((auto for ending, auto in AUTO.items() if kind.endswith(ending)), AutoModelForCausalLM)


def task_of(kind: str) -> TaskOptions:
    """Return a task for a tiny model."""
    return HEAD if kind.endswith("-classifier") else MASK if kind.endswith("-mlm") else WORDS


def write_adapter(kind: str, base: Path, adapter: Path, config: Any, **save: Any) -> Path:
    """Write a tiny model and an adapter in which every tensor matters, each to its folder; return the adapter's.

    Args:
        kind: of the tiny model.
        base: the model's folder; written where it doesn't exist.
        adapter: the adapter's folder.
        config: PEFT's configuration, or the options of a LoraConfig.
        save: options of PEFT's save_pretrained.
    """
    if not base.exists():
        make_model(kind, base)
    if isinstance(config, dict):
        task = {"-classifier": "SEQ_CLS", "-mlm": None}.get(kind[kind.find("-") :] if "-" in kind else "", "CAUSAL_LM")
        config = LoraConfig(**({"r": 4, "lora_alpha": 8, "task_type": task} | config))
    torch.manual_seed(0)
    model = get_peft_model(auto_of(kind).from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "base_layer.weight" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(adapter, **save)
    return adapter


def peft_logits(kind: str, base: Path, adapter: Path, task: Any, batch: Any) -> torch.Tensor:
    """Return the task's logits by PEFT on the usual Auto class, without Covey's code."""
    model = PeftModel.from_pretrained(auto_of(kind).from_pretrained(base), adapter).eval()
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    if task.label_token_ids is None:
        return torch.as_tensor(logits)
    position = mask.sum(dim=1) - 1
    if task.mask_token_id is not None:
        position = (ids == task.mask_token_id).nonzero()[:, 1]
    return torch.as_tensor(logits[torch.arange(len(ids)), position][:, task.label_token_ids])


def batch_for(model_task: Any) -> Batch:
    """Return a batch of rows of different lengths, with a mask in each where the task has one."""
    given = batches()[0]
    rows = [row[: mask.sum()].tolist() for row, mask in zip(given.input_ids, given.attention_mask, strict=True)]
    if model_task.mask_token_id is not None:
        for index, row in enumerate(rows):
            row[index % len(row)] = model_task.mask_token_id
    return pad(rows, [0] * len(rows), model_task.pad_token_id)


def eager(model: ExportModel, batch: Batch) -> torch.Tensor:
    """Return the logits of the module that an export traces."""
    with torch.no_grad():
        return model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
