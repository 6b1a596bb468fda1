"""Example batches for tracing, and the names and bounds of their dynamic sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.bundle.manifest import CAUSAL_LM, Dtype, Task
from edge_runtime.data.batch import CHUNK_TOKENS, pad_completions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.model.build import ExportModel
    from export.trace.lift import Lifted

MAX_BATCH = 4096
MAX_CHUNK = 4096
MAX_CHUNKS = 1_000_000
"""Bounds of the dynamic sizes: rows of a batch, positions of a chunk, chunks of a batch."""
_DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


def dimension_names(lifted: Lifted, sizes: dict[str, tuple[str, ...]]) -> dict[Any, str]:
    """Return the name of each symbolic size of a program, from the names of the sizes of a batch's tensors."""
    return {
        size.node.expr: name
        for item in lifted.inputs
        if item.kind == "batch"
        for size, name in zip(item.value.shape, sizes[item.source], strict=True)
    }


def shape_of(value: Any, names: dict[Any, str]) -> list[int | str]:
    """Return a fake value's shape as the manifest writes it: numbers, and names of symbolic sizes."""
    return [
        names.get(size.node.expr, str(size)) if isinstance(size, torch.SymInt) else int(size) for size in value.shape
    ]


def dtype_of(value: Any) -> Dtype:
    """Return a fake value's element type as the manifest writes it."""
    return _DTYPES[value.dtype]


def sizes(task: Task) -> dict[str, tuple[str, ...]]:
    """Return the size names of each tensor of a batch, in the order in which the traced module takes the tensors."""
    rows: dict[str, tuple[str, ...]] = {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "tokens")}
    if task.kind == CAUSAL_LM:
        return rows | {"labels": ("chunks", "chunk"), "positions": ("chunks", "chunk")}
    return rows | {"labels": ("batch",)}


def size_bounds(task: Task) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest value of each named size of a batch."""
    bounds = {"batch": (1, MAX_BATCH), "tokens": (2, task.max_tokens)}
    if task.kind == CAUSAL_LM:
        bounds |= {"chunks": (1, MAX_CHUNKS), "chunk": (1, MAX_CHUNK)}
    return bounds


def longest_batch(task_tokens: int, rows: int) -> dict[str, int]:
    """Return the named sizes of a batch of rows of ``task_tokens`` tokens, all of which are a completion's."""
    positions = rows * task_tokens
    return {
        "batch": rows,
        "tokens": task_tokens,
        "chunk": CHUNK_TOKENS,
        "chunks": -(-positions // CHUNK_TOKENS),
    }


def shortest_row(task: Task) -> int:
    """Return the fewest tokens of a row: a completion has a token before it, and a mask stands in second place here."""
    return 2 if task.kind == CAUSAL_LM or task.mask_token_id is not None else 1


def example_batch(
    task: Task, vocab_size: int, rows: int, tokens: int, seed: int = 0, lengths: Sequence[int] | None = None
) -> dict[str, torch.Tensor]:
    """Return a batch of random rows, padded to ``tokens``: every second row, or to the given lengths.

    For causal-lm, the second half of each row is its completion, in chunks of up to 5 positions. There are several
    chunks, and the last one is partly filled where the number of positions allows it.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    # Some models find the end of a row by its padding, so no pad token may stand inside a row.
    input_ids[input_ids == task.pad_token_id] = (task.pad_token_id + 1) % vocab_size
    attention_mask = torch.ones_like(input_ids)
    if lengths is None:
        lengths = [max(2, tokens - 1 - row % tokens) if row % 2 else tokens for row in range(rows)]
    for row, length in enumerate(lengths):
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


def traced_batch(model: ExportModel) -> dict[str, torch.Tensor]:
    """Return the batch with which a model is traced: 3 rows of at most 10 tokens."""
    return example_batch(model.task, model.folder.vocab_size, rows=3, tokens=10)
