"""Corrections: labelled rows that were added on the device, in a file of their own beside the owner's.

The owner's file is never written. A correction comes before a row of it with the same text, or the same prompt. The
file is JSON Lines; it is written whole, so that a power cut leaves the old one or the new one, and it has a bound: the
oldest corrections go first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.config import DataConfig
from edge_runtime.data.labels import label_index
from edge_runtime.data.problems import damage
from edge_runtime.data.text_file import open_text
from edge_runtime.errors import DataError, storage_error
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edge_runtime.bundle.manifest import Task

LONGEST_CHARACTERS = 1_000_000
"""Of a text: a flood of feedback must not fill the disk with a few rows."""
_KINDS = (("text", "label"), ("prompt", "completion"))


@dataclass(frozen=True)
class Added:
    """What came of rows that were added.

    Attributes:
        added: new rows.
        replaced: rows that took the place of an older correction of the same text.
        repeated: rows that were there already, word for word; they keep their place.
        dropped: the oldest corrections, which had to go.
        rows: corrections in the file now.
    """

    added: int
    replaced: int
    repeated: int
    dropped: int
    rows: int


def corrections_of(data: DataConfig) -> DataConfig | None:
    """Return how the corrections beside a file of rows are read; None: there are none."""
    if not data.corrections or not Path(data.corrections).exists() or Path(data.corrections).stat().st_size == 0:
        return None
    return DataConfig(data.corrections, label_names=data.label_names, encoding="utf-8")


def add_corrections(path: Path, records: Sequence[dict[str, Any]], most_rows: int) -> Added:
    """Add rows to a file of corrections, all or none of them.

    Args:
        path: the file; it is made where it is missing, readable by its owner alone.
        records: rows, each with ``text`` and ``label``, or ``prompt`` and ``completion``, and nothing else.
        most_rows: corrections that the file may have.

    Raises:
        DataError: a record is wrong, or the file is damaged: nothing is changed.
        StorageError: the file cannot be read or written.
    """
    checked = check_records(records)
    with _locked(path):
        kept = {_key(record): record for record in _read(path)}
        added = replaced = repeated = 0
        for record in checked:
            known = kept.get(_key(record))
            if known == record:
                repeated += 1
                continue
            added, replaced = added + (known is None), replaced + (known is not None)
            kept.pop(_key(record), None)  # it becomes the newest
            kept[_key(record)] = record
        rows = list(kept.values())
        dropped = max(0, len(rows) - most_rows)
        rows = rows[dropped:]
        if added or replaced or dropped:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in rows)
            write_atomically(path, lines.encode(), is_private=True)
    return Added(added, replaced, repeated, dropped, len(rows))


def check_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with their fields in order.

    Raises:
        DataError: a record is wrong: see add_corrections; rows are numbered from 1.
    """
    return [_checked(record, f"row {number}") for number, record in enumerate(records, 1)]


def check_task(records: Sequence[dict[str, Any]], task: Task, label_names: Mapping[str, str]) -> None:
    """Check rows against the task of the bundle that the device has: it could not use others.

    Args:
        records: rows, as for add_corrections.
        task: the task.
        label_names: what the owner's file writes for a label, and the label that it means.

    Raises:
        DataError: a label that the task does not have, or a row of another kind of task.
    """
    wanted = _KINDS[1] if task.kind == CAUSAL_LM else _KINDS[0]
    for number, record in enumerate(records, 1):
        if wanted[0] not in record:
            raise DataError(
                f"row {number} has no {wanted[0]}, and the bundle's task is {task.kind}",
                f"give {' and '.join(wanted)}; nothing was added",
                facts=f"row {number} is of another task",
            )
        label = record.get("label")
        if wanted[0] == "text" and label_index(label, task.labels, label_names) < 0:
            raise DataError(
                f"row {number}: the label is {label!r}, not one of {', '.join(task.labels)}",
                "write one of them; nothing was added",
                facts=f"row {number} has an unknown label",
            )


def _key(record: dict[str, Any]) -> tuple[str, str]:
    field = "text" if "text" in record else "prompt"
    return field, record[field]


def _checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    fields = next((pair for pair in _KINDS if set(record) == set(pair)), None)
    if fields is None:
        names = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(
            f"{where} has {names}", "give text and label, or prompt and completion", facts=f"{where} has other fields"
        )
    for field in fields:
        value = record[field]
        if field == "label" and isinstance(value, int) and not isinstance(value, bool):
            continue  # its index
        if not isinstance(value, str):
            raise DataError(f"{where}: {field} is no text", "write it in quotes", facts=f"{where} is wrong")
        if not value.strip() and field != "prompt":
            raise DataError(f"{where}: {field} is empty", "write what it is", facts=f"{where} is wrong")
        if damage(value) is not None or "\0" in value:
            raise DataError(f"{where}: {field} has half a character or NUL", "write UTF-8", facts=f"{where} is wrong")
        if len(value) > LONGEST_CHARACTERS:
            what = f"{where}: {field} has {len(value):,} characters; a correction may have {LONGEST_CHARACTERS:,}"
            raise DataError(what, "cut it: the model reads the beginning alone", facts=f"{where} is too long")
    return {field: record[field] for field in fields}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for number, line in open_text(path, "utf-8").lines():
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line.encode(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise DataError(
                f"{path}: line {number} is no JSON object: {error}",
                "correct the line, or delete it; Covey writes this file, and no other row of it is wrong so far",
                facts=f"line {number} of the corrections is damaged",
            ) from error
        yield _checked(record, f"{path}: line {number}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time read and write the file.

    Raises:
        StorageError: the file that is locked cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(error, lock) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
