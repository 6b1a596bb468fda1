"""The device's private rows: JSON Lines or CSV, checked line by line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_SHOWN_PROBLEMS = 5

RowT = TypeVar("RowT")


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


def read_rows(path: Path, labels: Sequence[str], text_field: str = "text", label_field: str = "label") -> list[Row]:
    """Read and check a file of examples.

    Args:
        path: a ``.jsonl`` (also ``.json``, ``.ndjson``) or ``.csv`` file, UTF-8. Blank lines are skipped.
        labels: names of the labels; a row gives a name, or an index.
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label.

    Raises:
        DataError: no such file, no rows, or rows that are wrong: names the first lines and what is wrong with each.
    """

    def row(record: dict[str, Any]) -> Row | str:
        problem = _problem(record, labels, text_field, label_field)
        return problem or Row(record[text_field], _label_index(record[label_field], labels))

    return _read(path, row, f"{text_field!r} and {label_field!r} (one of {', '.join(labels)})")


def read_completions(
    path: Path, prompt_field: str = "prompt", completion_field: str = "completion"
) -> list[Completion]:
    """Read and check a file of prompts with their completions; a prompt may be empty, a completion may not.

    Args:
        path: see read_rows.
        prompt_field: name of the field or column with the prompt.
        completion_field: name of the field or column with the text that should follow; it usually begins with a space.

    Raises:
        DataError: see read_rows.
    """

    def row(record: dict[str, Any]) -> Completion | str:
        for field in (prompt_field, completion_field):
            if record.get(field) is None:
                return f"no {field!r}"
            if not isinstance(record[field], str):
                return f"{field!r} is not text but {type(record[field]).__name__}"
        if not record[completion_field].strip():
            return f"{completion_field!r} is empty"
        return Completion(record[prompt_field], record[completion_field])

    return _read(path, row, f"{prompt_field!r} and {completion_field!r}")


def _read(path: Path, row_of: Callable[[dict[str, Any]], RowT | str], wanted: str) -> list[RowT]:
    """Read all rows; ``row_of`` returns a record's row, or what is wrong with it."""
    rows: list[RowT] = []
    problems: list[tuple[int, str]] = []
    for line, record in _records(path):
        row = record if isinstance(record, str) else row_of(record)
        if isinstance(row, str):
            problems.append((line, row))
        else:
            rows.append(row)
    if problems:
        shown = problems[:_SHOWN_PROBLEMS]
        count = f"{len(problems)} of {len(problems) + len(rows)} rows are wrong"
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(
            f"{path}: {count}\n  " + "\n  ".join(f"line {line}: {problem}" for line, problem in shown) + more,
            f"correct these lines; each row needs {wanted}",
            facts=f"{count}, the first in {'lines' if len(problems) > 1 else 'line'} "
            + ", ".join(str(line) for line, _ in shown),
        )
    if not rows:
        raise DataError(f"{path} has no rows", f"write one row per line, with {wanted}", facts="it has no rows")
    return rows


def label_counts(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, int]:
    """Return how many rows each label has."""
    counts = Counter(row.label for row in rows)
    return {label: counts[index] for index, label in enumerate(labels)}


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, record, or what is wrong with the line)."""
    readers: dict[str, Callable[[Any], Iterator[tuple[int, dict[str, Any] | str]]]] = {
        ".jsonl": _json_records,
        ".ndjson": _json_records,
        ".json": _json_records,
        ".csv": _csv_records,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}", "give a .jsonl or a .csv file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(file)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}", "convert the file to UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}", "check its quotes") from error


def _json_records(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:  # noqa: ANN401 a text file
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, record if isinstance(record, dict) else f"not a JSON object but {type(record).__name__}"


def _csv_records(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:  # noqa: ANN401 a text file
    reader = csv.DictReader(file, strict=True)
    for record in reader:
        if None in record:
            yield reader.line_num, "more values than columns"
        else:
            yield reader.line_num, record


def _problem(record: dict[str, Any], labels: Sequence[str], text_field: str, label_field: str) -> str | None:
    for field in (text_field, label_field):
        if record.get(field) is None:
            return f"no {field!r}"
    text, label = record[text_field], record[label_field]
    if not isinstance(text, str):
        return f"{text_field!r} is not text but {type(text).__name__}"
    if not text.strip():
        return f"{text_field!r} is empty"
    if _label_index(label, labels) < 0:
        return f"{label_field!r} is {label!r}, not one of {', '.join(labels)}"
    return None


def _label_index(label: Any, labels: Sequence[str]) -> int:  # noqa: ANN401 parsed JSON
    """Return the index of a label given by name or index, -1 where it is neither."""
    if isinstance(label, str):
        if label in labels:
            return list(labels).index(label)
        if not (label.isascii() and label.isdigit()):
            return -1
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    return -1


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the device's private rows are.

    Attributes:
        path: a ``.jsonl`` or ``.csv`` file; relative to the configuration file.
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label (a label's name, or its index).
        prompt_field: causal-lm: name of the field or column with the prompt.
        completion_field: causal-lm: name of the field or column with the text that should follow.
    """

    path: str
    text_field: str = "text"
    label_field: str = "label"
    prompt_field: str = "prompt"
    completion_field: str = "completion"
