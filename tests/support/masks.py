"""Batches for tasks that predict a masked token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.data.batch import pad

if TYPE_CHECKING:
    from edge_runtime.data.batch import Batch


def with_masks(batch: Batch, mask_token_id: int | None, pad_token_id: int) -> Batch:
    """Return the batch with one mask a row, where the task has one."""
    rows = [row[: mask.sum()].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    for index, row in enumerate(rows):
        if mask_token_id is not None:
            row[(5 * index + 1) % len(row)] = mask_token_id
    return pad(rows, batch.labels.tolist(), pad_token_id)
