"""A batch: rows of token ids, padded on the right to the longest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded on the right to the longest of them.

    Attributes:
        input_ids: int64, (rows, tokens).
        attention_mask: int64, (rows, tokens), 1 for a real token.
        labels: int64, (rows,), index of each row's label.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])


def pad(rows: Sequence[Sequence[int]], labels: Sequence[int], pad_token_id: int) -> Batch:
    """Stack rows into a batch, padded on the right to the longest of them.

    Args:
        rows: token ids of each row, at least one row, no row empty.
        labels: index of each row's label.
        pad_token_id: fills the shorter rows.
    """
    longest = max(len(row) for row in rows)
    input_ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    return Batch(input_ids, attention_mask, np.asarray(labels, dtype=np.int64))
