"""Rows as token ids, from which batches are made, for every task."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import pad, pad_predicted
from edge_runtime.data.conversations import Dialogue, template_of
from edge_runtime.data.corrections import corrections_of
from edge_runtime.data.examples import Completion, Reading, Row, read_examples, read_prompts
from edge_runtime.data.problems import Fault, none_usable, numbers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.data.chat import Message
    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.dialogue_tokens import EncodedDialogue
    from edge_runtime.data.examples import Prompted
    from edge_runtime.data.problems import Places, Problems
    from edge_runtime.data.tokens import CompletionEncoder, EncodedCompletion, EncodedText

_LOG = logging.getLogger(__name__)

EncodedPrompted: TypeAlias = "EncodedCompletion | EncodedDialogue"

RowT = TypeVar("RowT")
EncodedT = TypeVar("EncodedT")


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
    """Prompts with their completions, or conversations, as token ids.

    ``predicted``: the indices of each row's tokens to predict, ascending, from 1.
    """

    tokens: Sequence[Sequence[int]]
    predicted: Sequence[Sequence[int]]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> CompletionBatch:
        """Return these rows, padded to the longest of them."""
        tokens, predicted = ([of_row[i] for i in indices] for of_row in (self.tokens, self.predicted))
        return pad_predicted(tokens, predicted, self.pad_token_id)


def picked(rows: EncodedRows | EncodedCompletions, indices: Sequence[int]) -> EncodedRows | EncodedCompletions:
    """Return some rows, in the order of the indices."""
    tokens = [rows.tokens[index] for index in indices]
    if isinstance(rows, EncodedCompletions):
        return EncodedCompletions(tokens, [rows.predicted[index] for index in indices], rows.pad_token_id)
    return EncodedRows(tokens, [rows.labels[index] for index in indices], rows.pad_token_id)


@dataclass(frozen=True)
class Loaded:
    """A file's rows, encoded, and what was found beside them.

    Attributes:
        rows: the rows that can be used, at least one.
        used: what was read for each of them, before it was encoded.
        lines: the number of each of them in its source, as ``places`` counts.
        skipped: the rows that were left out, by the same numbers.
        notes: what was recognised, as half sentences for the user.
        places: what the numbers count. Those of corrections come after the source's: see ``own``.
        form: what the source is, half a sentence for the user.
        own: how many of the rows, the first ones, are the source's own; those after them are corrections.
        cut: whether each row lost tokens, because it is longer than the model's rows.
        cut_texts: number of rows whose texts were so long that they were cut before they were tokenised.
    """

    rows: EncodedRows | EncodedCompletions
    used: Sequence[Row] | Sequence[Prompted]
    lines: Sequence[int]
    skipped: Problems
    notes: Sequence[str]
    places: Places
    form: str
    own: int
    cut: Sequence[bool]
    cut_texts: int


def special_token_counts(bundle: Bundle, used: Sequence[Row] | Sequence[Prompted]) -> dict[str, int]:
    """Return in how many rows each special token stands written out; see vocabulary.special_tokens_in.

    Those that a chat template writes around messages do not count, those inside a message do.
    """
    from edge_runtime.data.tokens import load_tokenizer  # noqa: PLC0415 loaded with the first bundle
    from edge_runtime.data.vocabulary import special_tokens_in  # noqa: PLC0415

    texts = [row.text if isinstance(row, Row) else row.prompt + row.completion for row in used]
    return special_tokens_in(texts, load_tokenizer(bundle.file(bundle.manifest.tokenizer_file)))


def load_rows(bundle: Bundle, data: DataConfig) -> EncodedRows | EncodedCompletions:
    """Read, check and encode a file of rows for a bundle's task; log what was left out.

    Raises:
        DataError: there is no such file, it has no usable rows, or some rows are wrong.
    """
    loaded = load(bundle, data)
    for note in loaded.notes:
        _LOG.info("%s: %s", data.path, note)
    if loaded.skipped:
        total = len(loaded.rows) + len(loaded.skipped)
        _LOG.warning(
            "%s: %d of %d rows are left out (%s); covey-edge data check says why",
            data.path,
            len(loaded.skipped),
            total,
            loaded.places.names_of(numbers_of(loaded.skipped)),
        )
    return loaded.rows


def load(bundle: Bundle, data: DataConfig) -> Loaded:
    """Read, check and encode a file of rows for a bundle's task, with the corrections beside it.

    Raises:
        DataError: see load_rows.
    """
    main, corrections = _load_file(bundle, data), corrections_of(data)
    if corrections is None:
        return main
    return _corrected(main, _load_file(bundle, corrections), Path(corrections.path).name)


def _load_file(bundle: Bundle, data: DataConfig) -> Loaded:
    from edge_runtime.data.tokens import CompletionEncoder, TextEncoder  # noqa: PLC0415 loaded with the first bundle

    task, tokenizer_file = bundle.manifest.task, bundle.file(bundle.manifest.tokenizer_file)
    vocab_size = bundle.manifest.vocab_size
    if task.kind == CAUSAL_LM:
        prompts = read_prompts(data, template_of(bundle, data.path))
        encoder = CompletionEncoder(tokenizer_file, task, vocab_size)
        kept_rows: tuple[list[EncodedPrompted], Reading[Prompted]] = _kept(
            prompts, _encoded(encoder, prompts.rows), data
        )
        completions, used = kept_rows
        encoded = EncodedCompletions(
            [row.ids for row in completions], [row.predicted for row in completions], task.pad_token_id
        )
        return _loaded(encoded, used, completions)
    examples = read_examples(data, task.labels)
    texts, kept = _kept(
        examples, TextEncoder(tokenizer_file, task, vocab_size).encode_each([row.text for row in examples.rows]), data
    )
    rows = EncodedRows([row.ids for row in texts], [row.label for row in kept.rows], task.pad_token_id)
    return _loaded(rows, kept, texts)


def _encoded(encoder: CompletionEncoder, rows: Sequence[Prompted]) -> Sequence[EncodedPrompted | Fault]:
    """Return the tokens of rows of both kinds, in the order given, or why a row has none."""
    of_prompts = iter(encoder.encode_each([row for row in rows if isinstance(row, Completion)]))
    of_dialogues = iter(encoder.encode_dialogues([row for row in rows if isinstance(row, Dialogue)]))
    return [next(of_prompts) if isinstance(row, Completion) else next(of_dialogues) for row in rows]


def _loaded(
    rows: EncodedRows | EncodedCompletions,
    kept: Reading[Row] | Reading[Prompted],
    encoded: Sequence[EncodedText] | Sequence[EncodedPrompted],
) -> Loaded:
    return Loaded(
        rows,
        kept.rows,
        kept.lines,
        kept.skipped,
        kept.notes,
        kept.places,
        kept.form,
        len(rows),
        [row.is_short for row in encoded],
        sum(row.is_cut for row in encoded),
    )


def _corrected(main: Loaded, added: Loaded, name: str) -> Loaded:
    """Return rows with corrections behind them, without those that are corrected."""
    corrected = set(map(_corrects, added.used))
    stay = [index for index, text in enumerate(map(_corrects, main.used)) if text not in corrected]
    old, new = main.rows, added.rows
    rows: EncodedRows | EncodedCompletions
    tokens = [*(old.tokens[index] for index in stay), *new.tokens]
    if isinstance(old, EncodedRows) and isinstance(new, EncodedRows):
        rows = EncodedRows(tokens, [*(old.labels[index] for index in stay), *new.labels], old.pad_token_id)
    elif isinstance(old, EncodedCompletions) and isinstance(new, EncodedCompletions):
        rows = EncodedCompletions(tokens, [*(old.predicted[index] for index in stay), *new.predicted], old.pad_token_id)
    else:
        raise TypeError("rows and corrections are of different tasks")
    replaced = len(main.used) - len(stay)
    notes = [*main.notes, f"{name} adds {len(new)} corrections, {replaced} of them for rows of this file"]
    notes += [f"{name}: {added.places.names_of(numbers_of(added.skipped))} left out"] if added.skipped else []
    used: list[Any] = [*(main.used[index] for index in stay), *added.used]
    return replace(
        main,
        rows=rows,
        used=used,
        lines=[*(main.lines[index] for index in stay), *added.lines],
        notes=notes,
        own=len(stay),
        cut=[*(main.cut[index] for index in stay), *added.cut],
        cut_texts=main.cut_texts + added.cut_texts,
    )


def _corrects(row: Row | Prompted) -> str | tuple[Message, ...]:
    """Return what a correction has in common with the row that it corrects; a conversation has none."""
    if isinstance(row, Dialogue):
        return row.messages
    return row.prompt if isinstance(row, Completion) else row.text


def _kept(
    reading: Reading[RowT], encoded: Sequence[EncodedT | Fault], data: DataConfig
) -> tuple[list[EncodedT], Reading[RowT]]:
    """Return the encoded rows without those that could not be encoded, and the reading without them.

    Raises:
        DataError: none is left.
    """
    good: list[EncodedT] = []
    kept: list[tuple[RowT, int]] = []
    skipped = list(reading.skipped)
    for row, line, result in zip(reading.rows, reading.lines, encoded, strict=True):
        if isinstance(result, Fault):
            skipped.append((line, result))
        else:
            good.append(result)
            kept.append((row, line))
    skipped.sort(key=lambda problem: problem[0])
    if not good:
        raise none_usable(Path(data.path), skipped, reading.places, "text that the bundle's tokenizer takes")
    lines = [line for _, line in kept]
    return good, replace(reading, rows=[row for row, _ in kept], lines=lines, skipped=skipped)
