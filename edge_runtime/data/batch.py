"""A batch: rows of token ids, padded on the right to the longest of them, and the labels to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        labels: int64, (rows,), index of each row's label; see CompletionBatch for completions.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])

    @property
    def loss_terms(self) -> int:
        """Number of terms of the mean loss: rows, or completion tokens."""
        return self.rows


IGNORED = -100
"""The label of a position that only fills up a chunk."""
CHUNK_TOKENS = 64
"""Number of positions whose logits over the whole vocabulary are in memory at once."""


@dataclass(frozen=True)
class CompletionBatch(Batch):
    """Rows of tokens, and the positions whose next token is to be predicted, in chunks.

    The output embedding runs on these positions only, one chunk after the other, so that memory holds the logits of one
    chunk, (chunk, vocabulary). The last chunk is filled up with position 0 and label IGNORED.

    Attributes:
        labels: int64, (chunks, chunk), the token that follows each position, or IGNORED.
        positions: int64, (chunks, chunk), row × tokens + index in the row.
    """

    positions: NDArray[np.int64]

    @property
    def loss_terms(self) -> int:
        """See Batch."""
        return int((self.labels != IGNORED).sum())

    def by_row(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum over each row, float64 (rows,), of one value per position, (chunks, chunk)."""
        counted = self.labels.ravel() != IGNORED
        row = self.positions.ravel()[counted] // self.input_ids.shape[1]
        weights = np.asarray(values, dtype=np.float64).ravel()[counted]
        return np.bincount(row, weights=weights, minlength=self.rows).astype(np.float64)


def pad_completions(
    rows: Sequence[Sequence[int]], starts: Sequence[int], pad_token_id: int, chunk_tokens: int = CHUNK_TOKENS
) -> CompletionBatch:
    """Stack prompts with their completions into a batch.

    Args:
        rows: token ids of each row, prompt and completion.
        starts: index of each row's first completion token, at least 1 and below the row's length.
        pad_token_id: see pad_predicted.
        chunk_tokens: see pad_predicted.
    """
    predicted = [range(start, len(row)) for row, start in zip(rows, starts, strict=True)]
    return pad_predicted(rows, predicted, pad_token_id, chunk_tokens)


def pad_predicted(
    rows: Sequence[Sequence[int]],
    predicted: Sequence[Sequence[int]],
    pad_token_id: int,
    chunk_tokens: int = CHUNK_TOKENS,
) -> CompletionBatch:
    """Stack rows of tokens, some of which are to be predicted, into a batch.

    Args:
        rows: token ids of each row.
        predicted: indices of each row's tokens to predict, at least one, ascending, from 1.
        pad_token_id: fills the shorter rows.
        chunk_tokens: size of the largest chunk; all chunks have nearly the same size.
    """
    batch = pad(rows, [0] * len(rows), pad_token_id)
    tokens = batch.input_ids.shape[1]
    positions = [index * tokens + place - 1 for index, places in enumerate(predicted) for place in places]
    labels = [row[place] for row, places in zip(rows, predicted, strict=True) for place in places]
    chunks = -(-len(positions) // chunk_tokens)
    chunk = -(-len(positions) // chunks)
    missing = chunks * chunk - len(positions)
    return CompletionBatch(
        batch.input_ids,
        batch.attention_mask,
        np.asarray(labels + [IGNORED] * missing, dtype=np.int64).reshape(chunks, chunk),
        np.asarray(positions + [0] * missing, dtype=np.int64).reshape(chunks, chunk),
    )


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


def fill_chunks(
    labels: NDArray[np.int64], positions: NDArray[np.int64], chunk_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill chunks of positions up to a fixed width, with ignored labels.

    Args:
        labels: int64, (chunks, chunk).
        positions: int64, (chunks, chunk).
        chunk_tokens: the width, at least ``chunk``.

    Returns:
        Labels and positions, int64, (chunks, chunk_tokens).
    """
    missing = ((0, 0), (0, chunk_tokens - labels.shape[1]))
    return np.pad(labels, missing, constant_values=IGNORED), np.pad(positions, missing)
