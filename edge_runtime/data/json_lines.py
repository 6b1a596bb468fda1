"""JSON Lines: one object a line. What is JSON of another shape is named as such, in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edge_runtime.data.problems import NUL_BYTES, Fault, Likely
from edge_runtime.data.text_file import without_mark
from edge_runtime.errors import DataError, cause_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edge_runtime.data.text_file import TextFile

LIKELY = {
    "comma": Likely(
        "a comma ends the lines, as in an array",
        "delete the comma at the end of each line: sed -i 's/,[[:space:]]*$//' FILE",
    ),
    "python": Likely(
        "the rows are written as Python prints them, with single quotes", "write each row with json.dumps(row)"
    ),
    "array": Likely(
        "each line is an array of values", 'write each line as an object with names: {"text": …, "label": …}'
    ),
    "repeated": Likely("rows have two fields of one name", "keep one of them in each row, and rename the other"),
}
"""What is likely to be behind a kind of fault."""


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys came more than once."""

    repeated: frozenset[str] = frozenset()


def json_records(file: TextFile, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield the line number and the object of each line, or what is wrong with the line; blank lines are left out.

    Args:
        file: the file.
        fields: names of the fields that must not come twice.

    Raises:
        DataError: the file is one JSON document (an array, or objects over several lines), or see TextFile.lines.
    """
    is_first = True
    for number, raw in file.lines():
        line = without_mark(number, raw, file.notes)
        if not line.strip():
            continue
        record = _record(line, fields)
        if is_first:
            _check_shape(file.path, number, line, record)
            is_first = False
        yield number, record


def _record(line: str, fields: Sequence[str]) -> dict[str, Any] | Fault:
    if "\0" in line:
        return NUL_BYTES
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except RecursionError:
        return Fault("it nests too deeply to be read", "deep", is_skipped=True)
    except Exception as error:  # noqa: BLE001 a border: whatever the decoder raises is a fault of the line
        return _not_json(line, cause_of(error))
    if not isinstance(record, _Object):
        kind = "array" if isinstance(record, list) else "shape"
        return Fault(f"not a JSON object but {type(record).__name__}", kind)
    twice = [field for field in fields if field in record.repeated]
    if twice:
        return Fault(f"{twice[0]!r} comes twice", "repeated")
    return record


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        made.repeated = frozenset(name for name in made if names.count(name) > 1)
    return made


def _not_json(line: str, cause: str) -> Fault:
    text = line.strip()
    if text.endswith(",") and text.startswith("{"):
        return Fault("a comma follows the object", "comma")
    return Fault(f"not JSON: {cause}", "python" if text.startswith("{'") else "json")


def _check_shape(path: Path, number: int, line: str, first: dict[str, Any] | Fault) -> None:
    """Refuse a document that is no JSON Lines, by its first line.

    Raises:
        DataError: it is.
    """
    if isinstance(first, dict) or first.is_skipped:
        return
    text = line.strip()
    if text.startswith("["):
        try:
            values = json.loads(text)
        except Exception:  # noqa: BLE001 an array that goes on in the next line
            values = [{}]
        if any(isinstance(value, dict) for value in values):
            raise DataError(
                f"{path} is one JSON array (it begins in line {number}), not JSON Lines: one object a line",
                "write one object a line, without brackets around them and commas between: "
                f"jq -c '.[]' {path.name} > rows.jsonl",
                facts=f"it is one JSON array, from line {number} on",
            )
    if text == "{":
        raise DataError(
            f"{path} has JSON objects over several lines (the first begins in line {number}), not one object a line",
            f"write each object on one line: jq -c . {path.name} > rows.jsonl",
            facts=f"it has objects over several lines, from line {number} on",
        )
