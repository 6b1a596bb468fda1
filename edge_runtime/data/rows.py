"""Rows as token ids, from which batches are made, for every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import pad, pad_completions
from edge_runtime.data.examples import read_completions, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.data.examples import DataConfig


class Rows(Protocol):
    """Rows from which batches are made."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return these rows, padded to the longest of them."""


@dataclass(frozen=True)
class EncodedRows:
    """Texts as token ids, with their labels' indexes."""

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return these rows, padded to the longest of them."""
        return pad([self.tokens[i] for i in indices], [self.labels[i] for i in indices], self.pad_token_id)


@dataclass(frozen=True)
class EncodedCompletions:
    """Prompts with their completions as token ids; ``starts``: the index of each row's first token to predict."""

    tokens: Sequence[Sequence[int]]
    starts: Sequence[int]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> CompletionBatch:
        """Return these rows, padded to the longest of them."""
        return pad_completions([self.tokens[i] for i in indices], [self.starts[i] for i in indices], self.pad_token_id)


def special_token_counts(bundle: Bundle, data: DataConfig) -> dict[str, int]:
    """Return in how many rows of a file each special token stands written out; see vocabulary.special_tokens_in.

    Raises:
        DataError: see load_rows.
    """
    from edge_runtime.data.tokens import load_tokenizer  # noqa: PLC0415 loaded with the first bundle
    from edge_runtime.data.vocabulary import special_tokens_in  # noqa: PLC0415

    task = bundle.manifest.task
    if task.kind == CAUSAL_LM:
        pairs = read_completions(Path(data.path), data.prompt_field, data.completion_field)
        texts = [pair.prompt + pair.completion for pair in pairs]
    else:
        texts = [row.text for row in read_rows(Path(data.path), task.labels, data.text_field, data.label_field)]
    return special_tokens_in(texts, load_tokenizer(bundle.file(bundle.manifest.tokenizer_file)))


def load_rows(bundle: Bundle, data: DataConfig) -> EncodedRows | EncodedCompletions:
    """Read, check and encode a file of rows for a bundle's task.

    Raises:
        DataError: there is no such file, it has no rows, or some rows are wrong or have no tokens that the model knows.
    """
    from edge_runtime.data.tokens import CompletionEncoder, TextEncoder  # noqa: PLC0415 loaded with the first bundle

    task, tokenizer_file = bundle.manifest.task, bundle.file(bundle.manifest.tokenizer_file)
    vocab_size = bundle.manifest.vocab_size
    if task.kind == CAUSAL_LM:
        completions = read_completions(Path(data.path), data.prompt_field, data.completion_field)
        encoded = CompletionEncoder(tokenizer_file, task, vocab_size).encode(completions)
        return EncodedCompletions([row.ids for row in encoded], [row.start for row in encoded], task.pad_token_id)
    rows = read_rows(Path(data.path), task.labels, data.text_field, data.label_field)
    tokens = TextEncoder(tokenizer_file, task, vocab_size).encode([row.text for row in rows])
    return EncodedRows(tokens, [row.label for row in rows], task.pad_token_id)
