"""CSV rows with their line numbers. A quote that nobody closed is named by the line in which it opened."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from edge_runtime.data.csv_dialect import recognise
from edge_runtime.data.problems import NUL_BYTES, NUL_MARK, Fault, Likely, setting
from edge_runtime.data.records import Records
from edge_runtime.data.text_file import without_mark
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.csv_dialect import Dialect
    from edge_runtime.data.text_file import TextFile


LIKELY = {
    "columns": Likely(
        "a text contains the delimiter and has no quotes around it",
        f'put double quotes around such texts ("a, b"); if the quotes are single ones, {setting([("quote", chr(39))])}',
    )
}
"""What is likely to be behind a kind of fault."""


IS_HEADER = "it is a header, with the names that columns has: the file needs no columns"


class _Lines:
    """Feeds lines to the csv reader and remembers those of the record at work."""

    def __init__(self, file: TextFile, first_line: int) -> None:
        self._file, self._first_line = file, first_line
        self.record: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        for number, raw in self._file.lines():
            if number < self._first_line:
                continue
            line = raw if self.record else without_mark(number, raw, self._file.notes)
            line = line.replace("\0", NUL_MARK)
            self.record.append((number, line))
            yield line


def csv_records(
    file: TextFile, data: DataConfig, wanted: Mapping[str, str], is_label: Callable[[str], bool]
) -> Records:
    """Return a file's rows by the line in which each begins, with their values by column.

    Args:
        file: the file.
        data: see recognise.
        wanted: see recognise.
        is_label: see recognise.

    Raises:
        DataError: a quote is not closed; see recognise and TextFile.lines.
    """
    dialect = recognise(file, data, wanted, is_label)
    if dialect is None:
        return Records(iter(()), "an empty file", file.notes)
    return Records(_rows(file, dialect), dialect.words, file.notes)


def _rows(file: TextFile, dialect: Dialect) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    lines = _Lines(file, dialect.first_line)
    reader = dialect.values(iter(lines))
    is_header = dialect.header_line > 0
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise _quote_error(file, lines.record, dialect) from error
        if record is None:
            return
        number = lines.record[0][0]
        lines.record = []
        if is_header or not record or record == [""]:
            is_header = is_header and not record
            continue
        yield number, _row(record, dialect)


def _row(record: list[str], dialect: Dialect) -> dict[str, str] | Fault:
    header = dialect.header
    if any(NUL_MARK in value for value in record):
        return NUL_BYTES
    while len(record) > len(header) and not record[-1]:
        record = record[:-1]  # a delimiter at the end of the line
    if len(record) > len(header):
        return Fault("more values than columns", "columns")
    if tuple(record) == header:
        return Fault("it repeats the header" if dialect.header_line else IS_HEADER, "header", is_skipped=True)
    return dict(zip(header, record, strict=False))


def _quote_error(file: TextFile, record: list[tuple[int, str]], dialect: Dialect) -> DataError:
    opened = quote_opened_in(record, dialect.delimiter, dialect.quote)
    last = record[-1][0]
    if opened == last:
        what = f"line {opened}: a quote ({dialect.quote}) opens a text and a quote within it ends it too soon"
        hint = f"write a quote within a text twice ({dialect.quote * 2}), or delete the quotes around the text"
    else:
        what = f"line {opened}: a quote ({dialect.quote}) opens here and is not closed (read on to line {last})"
        hint = (
            f"close or delete the quote in line {opened}; a quote within a text is written twice ({dialect.quote * 2})"
        )
    return DataError(f"{file.path}: {what}", hint, facts=f"a quote that opens in line {opened} is not closed")


def quote_opened_in(record: list[tuple[int, str]], delimiter: str, quote: str) -> int:
    """Return the line in which the quote opened at which reading a record failed.

    Args:
        record: the numbered lines of the record, up to the one that ended it.
        delimiter: the character between two columns.
        quote: the character around a text.
    """
    opened, state = record[0][0], "start"
    for number, line in record:
        for character in line:
            if state == "quoted":
                state = "ending" if character == quote else "quoted"
            elif state == "ending" and character == quote:
                state = "quoted"
            elif character == delimiter or (character in "\r\n"):
                state = "start"
            elif state == "ending":
                return opened
            elif state == "start" and character == quote:
                opened, state = number, "quoted"
            else:
                state = "plain"
    return opened
