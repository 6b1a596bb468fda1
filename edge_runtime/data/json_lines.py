"""JSON Lines: one object a line. A file whose first line begins a larger document is read as that document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edge_runtime.data.json_document import document_records
from edge_runtime.data.json_objects import checked, with_repeated
from edge_runtime.data.problems import NUL_BYTES, Fault, Likely
from edge_runtime.data.records import Records
from edge_runtime.data.text_file import MARK, without_mark
from edge_runtime.errors import cause_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def json_records(file: TextFile, fields: Sequence[str]) -> Records:
    """Return the objects of a JSON file: one a line, or, where its first line shows it, those of one document.

    Args:
        file: the file. Blank lines are left out.
        fields: names of the fields that must not come twice.

    Raises:
        DataError: see TextFile.lines, and json_document.document_records.
    """
    lines = (line.lstrip(MARK) for _, line in file.lines())
    if _is_document(next((line for line in lines if line.strip()), "")):
        return document_records(file, fields)
    return Records(_by_line(file, fields), "JSON Lines", file.notes)


def _by_line(file: TextFile, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    for number, raw in file.lines():
        line = without_mark(number, raw, file.notes)
        if line.strip():
            yield number, _record(line, fields)


def _record(line: str, fields: Sequence[str]) -> dict[str, Any] | Fault:
    if "\0" in line:
        return NUL_BYTES
    try:
        record = json.loads(line, object_pairs_hook=with_repeated)
    except RecursionError:
        return Fault("it nests too deeply to be read", "deep", is_skipped=True)
    except Exception as error:  # noqa: BLE001 a border: whatever the decoder raises is a fault of the line
        return _not_json(line, cause_of(error))
    return checked(record, fields)


def _not_json(line: str, cause: str) -> Fault:
    text = line.strip()
    if text.endswith(",") and text.startswith("{"):
        return Fault("a comma follows the object", "comma")
    return Fault(f"not JSON: {cause}", "python" if text.startswith("{'") else "json")


def _is_document(line: str) -> bool:
    """Whether a file's first line is not a whole row: it begins an array of objects, or an object of several lines."""
    text = line.strip()
    if text == "{":
        return True
    if not text.startswith("["):
        return False
    try:
        values = json.loads(text)
    except RecursionError:
        return False  # a row like others: it is left out
    except ValueError:
        return True  # an array that goes on in the next line
    return any(isinstance(value, dict) for value in values)
