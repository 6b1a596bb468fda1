"""Example batches for tracing, and the bounds of the sizes that a graph takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.data.batch import pad_completions

if TYPE_CHECKING:
    from export.trace.lift import Lifted

MAX_BATCH = 4096
MAX_CHUNK = 4096
MAX_CHUNKS = 1_000_000


def dimension_names(lifted: Lifted, sizes: dict[str, tuple[str, ...]]) -> dict[Any, str]:
    """Return the names of the program's symbolic sizes, from the names of the sizes of each tensor of a batch."""
    return {
        size.node.expr: name
        for item in lifted.inputs
        if item.kind == "batch"
        for size, name in zip(item.value.shape, sizes[item.source], strict=True)
    }


def shape_of(value: Any, names: dict[Any, str]) -> list[int | str]:
    """Return a shape as the manifest writes it: numbers, and names of symbolic sizes."""
    return [
        names.get(size.node.expr, str(size)) if isinstance(size, torch.SymInt) else int(size) for size in value.shape
    ]


def sizes(task: Task) -> dict[str, tuple[str, ...]]:
    """Return the names of the sizes of each tensor of a batch, in the order in which the traced module takes them."""
    rows: dict[str, tuple[str, ...]] = {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "tokens")}
    if task.kind == CAUSAL_LM:
        return rows | {"labels": ("chunks", "chunk"), "positions": ("chunks", "chunk")}
    return rows | {"labels": ("batch",)}


def size_bounds(task: Task) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest value of each named size."""
    bounds = {"batch": (1, MAX_BATCH), "tokens": (2, task.max_tokens)}
    if task.kind == CAUSAL_LM:
        bounds |= {"chunks": (1, MAX_CHUNKS), "chunk": (1, MAX_CHUNK)}
    return bounds


def example_batch(task: Task, vocab_size: int, rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch of random rows; every second one is padded.

    For causal-lm the second half of each row is its completion, in chunks of up to 5 positions: several of them, the
    last one not full where that is possible.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    # A pad token inside a row would end it for models that look for padding themselves.
    input_ids[input_ids == task.pad_token_id] = (task.pad_token_id + 1) % vocab_size
    attention_mask = torch.ones_like(input_ids)
    lengths = [tokens] * rows
    for row in range(1, rows, 2):
        lengths[row] = length = max(2, tokens - 1 - row % tokens)
        attention_mask[row, length:] = 0
        input_ids[row, length:] = task.pad_token_id
    if task.mask_token_id is not None:
        input_ids[input_ids == task.mask_token_id] = (task.pad_token_id + 1) % vocab_size
        input_ids[:, 1] = task.mask_token_id
    if task.kind == CAUSAL_LM:
        texts = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        batch = pad_completions(texts, [len(text) // 2 for text in texts], task.pad_token_id, chunk_tokens=5)
        labels, positions = torch.from_numpy(batch.labels), torch.from_numpy(batch.positions)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "positions": positions}
    labels = torch.randint(0, len(task.labels), (rows,), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
