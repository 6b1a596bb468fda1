"""The device's private rows: labelled texts, or prompts with completions, checked row by row.

A row that cannot be encoded by anybody (half a character, NUL bytes, endless nesting) is left out and counted. Rows
that are wrong in another way refuse the file, because what mends one of them often mends all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from edge_runtime.data import conversations, csv_rows, json_lines, transform
from edge_runtime.data.config import DataConfig
from edge_runtime.data.conversations import Dialogue, dialogue_of
from edge_runtime.data.fields import likely_names
from edge_runtime.data.labels import check_names, label_index, likely_mistake, spelling
from edge_runtime.data.problems import Fault, Likely, Places, commonest, damage, none_usable, refusal, setting
from edge_runtime.data.sources import open_records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.data.chat import ChatTemplate
    from edge_runtime.data.problems import Problems
    from edge_runtime.data.records import Records

__all__ = [
    "Completion",
    "DataConfig",
    "Prompted",
    "Reading",
    "Row",
    "label_counts",
    "read_examples",
    "read_prompts",
    "read_rows",
]

RowT = TypeVar("RowT")
Explain: TypeAlias = "Callable[[Problems, bool], Likely | None]"
"""Explains problems of one kind; the truth value says whether most rows of the file have them."""


@dataclass(frozen=True)
class Row:
    """One example: its text, and the index of its label."""

    text: str
    label: int


@dataclass(frozen=True)
class Completion:
    """One example for a causal language model: a prompt, and the text that should follow it."""

    prompt: str
    completion: str


Prompted: TypeAlias = Completion | Dialogue
"""One example for a causal language model."""


@dataclass(frozen=True)
class Reading(Generic[RowT]):
    """A source's rows and what was found beside them.

    Attributes:
        rows: the rows that can be used, at least one.
        lines: the line in which each of them begins; in other sources than JSON Lines and CSV, what places counts.
        skipped: the rows that were left out, by the same numbers.
        notes: what was recognised, as half sentences for the user (the encoding, the delimiter).
        places: what the numbers count.
        form: what the source is, half a sentence for the user.
    """

    rows: list[RowT]
    lines: list[int]
    skipped: Problems
    notes: list[str]
    places: Places
    form: str


def read_rows(path: Path, labels: Sequence[str], text_field: str = "text", label_field: str = "label") -> list[Row]:
    """Return the rows of read_examples, for a file that needs no other settings."""
    return read_examples(DataConfig(str(path), text_field=text_field, label_field=label_field), labels).rows


def read_examples(data: DataConfig, labels: Sequence[str]) -> Reading[Row]:
    """Read and check labelled texts.

    Args:
        data: the source (sources.py says which there are), and how to read it. Blank lines are skipped.
        labels: names of the labels; a row gives a name, an index, or what ``data.label_names`` says.

    Raises:
        DataError: no such file, no usable rows, or rows that are wrong: names the first lines and what is wrong with
            each, the likely mistake, and what mends it.
        ConfigError: ``data.label_names`` names no label, or the encoding does not exist.
    """
    check_names(data.label_names, labels)
    text_field, label_field = data.text_field, data.label_field

    def index(label: object) -> int:
        return label_index(label, labels, data.label_names)

    def row(record: Mapping[str, Any]) -> Row | Fault:
        fault = _missing(record, (text_field, label_field)) or _wrong_text(text_field, record[text_field])
        if fault is not None:
            return fault
        text, label = record[text_field], record[label_field]
        written = spelling(label)
        fault = damage(text) or (None if written is None else damage(written))
        if fault is not None:
            return fault
        found = index(label)
        if found >= 0:
            return Row(text, found)
        kind = "swapped" if text in labels else "label"
        what = f"{label_field!r} is {label!r}, not one of {', '.join(labels)}"
        return Fault(what, kind, seen=() if written is None else (written,))

    def likely_label(wrong: Problems, is_most: bool) -> Likely | None:
        return likely_mistake({fault.seen[0] for _, fault in wrong if fault.seen}, labels, is_most=is_most)

    wanted = {"text_field": text_field, "label_field": label_field}
    likely = {
        "label": likely_label,
        "swapped": lambda _wrong, _is_most: Likely(
            "the columns are swapped: the texts are labels",
            setting([("text_field", label_field), ("label_field", text_field)]),
        ),
    }
    records = open_records(data, wanted, lambda cell: cell != "" and index(cell) >= 0)
    needed = f"{text_field!r} and {label_field!r} (one of {', '.join(labels)})"
    return _read(Path(data.path), records, row, wanted, needed, likely)


def read_prompts(data: DataConfig, template: Callable[[], ChatTemplate] | None = None) -> Reading[Prompted]:
    """Read and check a file of prompts with their completions, or of conversations, or of both.

    A prompt may be empty, a completion or an answer may not.

    Args:
        data: see read_examples; a completion usually begins with a space.
        template: see conversations.dialogue_of.

    Raises:
        DataError: see read_examples; or the template cannot be read.
    """
    fields, messages_field = (data.prompt_field, data.completion_field), data.conversation_field

    def row(record: Mapping[str, Any]) -> Prompted | Fault:
        if record.get(messages_field) is not None and any(record.get(field) is None for field in fields):
            return dialogue_of(record[messages_field], messages_field, template)
        fault = _missing(record, fields)
        for field in fields:
            if fault is None and not isinstance(record[field], str):
                fault = Fault(f"{field!r} is not text but {type(record[field]).__name__}", "type")
            fault = fault or damage(record[field])
        if fault is not None:
            return fault
        if not record[data.completion_field].strip():
            return Fault(f"{data.completion_field!r} is empty", "empty")
        return Completion(record[data.prompt_field], record[data.completion_field])

    wanted = {"prompt_field": data.prompt_field, "completion_field": data.completion_field}
    records = open_records(data, wanted, lambda _cell: False, {"messages_field": messages_field})
    needed = f"{' and '.join(repr(field) for field in fields)}, or {messages_field!r}"
    return _read(Path(data.path), records, row, wanted, needed, {})


def label_counts(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, int]:
    """Return how many rows each label has."""
    counts = Counter(row.label for row in rows)
    return {label: counts[index] for index, label in enumerate(labels)}


def _read(  # wide: what differs between the two kinds of rows
    path: Path,
    source: Records,
    row_of: Callable[[Mapping[str, Any]], RowT | Fault],
    wanted: Mapping[str, str],
    needed: str,
    likely: Mapping[str, Explain],
) -> Reading[RowT]:
    """Read all rows; ``row_of`` returns a record's row, or what is wrong with it."""
    rows: list[RowT] = []
    lines: list[int] = []
    wrong: Problems = []
    skipped: Problems = []
    for line, record in source.items:
        row = record if isinstance(record, Fault) else row_of(record)
        if isinstance(row, Fault):
            (skipped if row.is_skipped else wrong).append((line, row))
        else:
            rows.append(row)
            lines.append(line)
    total = len(rows) + len(wrong) + len(skipped)
    if wrong:
        raise refusal(path, wrong, source.places, total, needed, _likely(wrong, total, wanted, likely))
    if not rows:
        raise none_usable(path, skipped, source.places, needed)
    return Reading(rows, lines, skipped, source.notes, source.places, source.form)


def _likely(wrong: Problems, total: int, wanted: Mapping[str, str], explain: Mapping[str, Explain]) -> Likely | None:
    """Return the likely mistake behind the commonest kind of fault, if it is more than half of the wrong rows."""
    kind = commonest(wrong)
    of_kind = [(line, fault) for line, fault in wrong if fault.kind == kind]
    if 2 * len(of_kind) <= len(wrong):
        return None
    is_most = 2 * len(of_kind) >= total
    if kind == "field":
        seen = of_kind[0][1].seen
        return likely_names(seen, wanted) if is_most and seen else None
    if kind in explain:
        return explain[kind](of_kind, is_most)
    return (csv_rows.LIKELY | json_lines.LIKELY | transform.LIKELY | conversations.LIKELY).get(kind)


def _missing(record: Mapping[str, Any], fields: Sequence[str]) -> Fault | None:
    for field in fields:
        if record.get(field) is None:
            kind = "value" if field in record else "field"
            return Fault(f"no {field!r}", kind, seen=tuple(record))
    return None


def _wrong_text(field: str, text: object) -> Fault | None:
    if not isinstance(text, str):
        return Fault(f"{field!r} is not text but {type(text).__name__}", "type")
    return None if text.strip() else Fault(f"{field!r} is empty", "empty")
