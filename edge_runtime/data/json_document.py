"""One JSON document with many rows: an array of objects, or objects that are written over several lines each.

The text is decoded object by object, so that no more than the file itself is in memory beside the rows.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from edge_runtime.data.json_objects import checked, with_repeated
from edge_runtime.data.problems import Fault, Places
from edge_runtime.data.records import Records
from edge_runtime.data.text_file import without_mark
from edge_runtime.errors import DataError, cause_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_runtime.data.text_file import TextFile

_BETWEEN = re.compile(r"[\s,]*")


def document_records(file: TextFile, fields: Sequence[str]) -> Records:
    """Return the objects of a document, numbered from 1; places say the line in which each begins.

    Args:
        file: the file, which begins with ``[`` or ``{``.
        fields: names of the fields that must not come twice.

    Raises:
        DataError: something in it is not JSON, its array has no end, or something follows it: what comes after a
            fault cannot be told apart, so the whole file is refused. See TextFile.lines.
    """
    starts, parts, length = [], [], 0
    for number, raw in file.lines():
        line = without_mark(number, raw, file.notes)
        starts.append(length)
        parts.append(line)
        length += len(line)
    text = "".join(parts)
    places = Places("object")

    def records() -> Iterator[tuple[int, dict[str, Any] | Fault]]:
        for number, (start, value) in enumerate(_values(file, text, starts), 1):
            places.names.append(f"object {number} (line {bisect_right(starts, start)})")
            yield number, checked(value, fields)

    form = "one JSON array" if text.lstrip().startswith("[") else "JSON objects over several lines"
    return Records(records(), form, file.notes, places)


def _values(file: TextFile, text: str, starts: Sequence[int]) -> Iterator[tuple[int, object]]:
    """Yield each value of a document, and where it starts."""
    decoder = json.JSONDecoder(object_pairs_hook=with_repeated)
    at = _skip(text, 0)
    is_array = text.startswith("[", at)
    opened = at
    at = _skip(text, at + 1) if is_array else at
    while at < len(text) and not (is_array and text[at] == "]"):
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _fault(file, bisect_right(starts, error.pos), f"is not JSON: {error.msg}") from error
        except RecursionError as error:
            raise _fault(file, bisect_right(starts, at), "nests too deeply to be read") from error
        except Exception as error:  # a border: whatever the decoder raises is a fault of the file
            raise _fault(file, bisect_right(starts, at), f"is not JSON: {cause_of(error)}") from error
        yield at, value
        at = _skip(text, end)
    if not is_array:
        return
    if at == len(text):
        line = bisect_right(starts, opened)
        raise DataError(
            f"{file.path}: the array that begins in line {line} has no end: the file is cut",
            "copy it again, or write it again; or write one object a line, where a cut costs one row",
            facts=f"its array, which begins in line {line}, has no end",
        )
    behind = _skip(text, at + 1)
    if behind < len(text):
        raise _fault(file, bisect_right(starts, behind), "follows the end of the array")


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return at if found is None else found.end()


def _fault(file: TextFile, line: int, what: str) -> DataError:
    return DataError(
        f"{file.path}: line {line} {what}",
        "correct it; in an array one such fault refuses the file, so one object a line is safer",
        facts=f"line {line} {what.partition(':')[0]}",
    )
