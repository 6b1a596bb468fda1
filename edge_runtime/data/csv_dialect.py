"""How a CSV file is written: delimiter, quotes and header are recognised by the names that the header must have.

Spreadsheets write ``;`` or TAB where the comma is the decimal sign, some tools write single quotes, and some files have
no header. Where one reading alone gives the wanted columns, it is taken and said; nothing else is guessed.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.data.config import AUTO
from edge_runtime.data.fields import folded, likely_names, shown
from edge_runtime.data.problems import setting
from edge_runtime.data.text_file import MARK
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.text_file import TextFile

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tabulator", "|": "a vertical bar"}
_SEP_LINE = re.compile(r'"?sep=(.)"?,*\s*', re.IGNORECASE)
_LOOKED_AT = 100
"""Rows by which a file without a header is judged."""
csv.field_size_limit(sys.maxsize)  # of the whole process: a long text is no fault


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: the character between two columns.
        quote: the character around a text.
        header: names of the columns.
        header_line: line of the header; 0: the file has none, its names come from the configuration.
        first_line: line in which the header, or else the first row, begins.
    """

    delimiter: str
    quote: str
    header: tuple[str, ...]
    header_line: int
    first_line: int

    @property
    def words(self) -> str:
        """What it is, for the user."""
        where = f"header in line {self.header_line}" if self.header_line else "no header; columns says the names"
        quotes = {'"': "double quotes", "'": "single quotes"}.get(self.quote, f"quotes {self.quote!r}")
        return f"CSV, {_NAMES.get(self.delimiter, repr(self.delimiter))} between columns, {quotes}, {where}"

    def values(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Yield the values of each record; an unclosed quote is a csv.Error."""
        return values(lines, self.delimiter, self.quote)


def values(lines: Iterator[str], delimiter: str, quote: str) -> Iterator[list[str]]:
    """Yield the values of each record; an unclosed quote is a csv.Error."""
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)


def recognise(
    file: TextFile, data: DataConfig, wanted: Mapping[str, str], is_label: Callable[[str], bool]
) -> Dialect | None:
    """Return how a file is written; None: it is empty. Adds what was recognised to the file's notes.

    Args:
        file: the file.
        data: its delimiter, quote and columns, where the user says them.
        wanted: names of the columns that rows need, by the setting of [data] that says the name; empty: the first
            line is the header, whatever it says.
        is_label: whether a value is a label, by which a first row is told from a header.

    Raises:
        DataError: it has no header with these columns, or two columns of one name; see TextFile.lines.
    """
    first, separator = _first_line(file)
    if first == 0:
        return None

    def text() -> Iterator[str]:
        return (line.lstrip(MARK) for number, line in file.lines() if number >= first and line.strip())

    delimiters = [data.delimiter_character] if data.delimiter != AUTO else [separator] if separator else _DELIMITERS
    quotes = ('"', "'") if data.quote == AUTO else (data.quote,)
    pairs = [(delimiter, quote) for delimiter, quote in itertools.product(delimiters, quotes) if delimiter != quote]
    if data.columns:
        delimiter, quote = _fitting(text, pairs, len(data.columns))
        header, header_line = tuple(data.columns), 0
    elif not wanted:
        delimiter, quote = _fitting(text, pairs, 0)
        header, header_line = tuple(_first_row(text, (delimiter, quote))), first
    else:
        delimiter, quote, header = _by_header(text, pairs, tuple(wanted.values()))
        header_line = first
        _check_settings(file.path, data, header, wanted, text)
        _check_header(file.path, first, header, wanted, is_label, lambda: _first_row(text, _fitting(text, pairs, 0)))
    _check_repeated(file.path, header_line, header, wanted)
    if data.quote == AUTO and quote == '"' and _single_quoted(text, delimiter, len(header)):
        quote = "'"
    if delimiter != "," and data.delimiter == AUTO:
        file.notes.append(f"{_NAMES.get(delimiter, repr(delimiter))} separates its columns")
    if quote == "'" and data.quote == AUTO:
        file.notes.append("its quotes are single ones (')")
    return Dialect(delimiter, quote, header, header_line, first)


def _first_line(file: TextFile) -> tuple[int, str]:
    """Return the first line that counts, 0 where there is none, and the delimiter of Excel's ``sep=`` line, if any."""
    separator = ""
    for number, line in file.lines():
        found = None if separator else _SEP_LINE.fullmatch(line.lstrip(MARK))
        if found is not None:
            separator = found[1]
        elif line.strip():
            return number, separator
    return 0, separator


def _by_header(
    text: Callable[[], Iterator[str]], pairs: list[tuple[str, str]], wanted: tuple[str, ...]
) -> tuple[str, str, tuple[str, ...]]:
    """Return delimiter, quote and header of the reading whose first record names the most wanted columns."""
    readings = []
    for delimiter, quote in pairs:
        try:
            header = tuple(next(values(text(), delimiter, quote), []))
        except csv.Error:
            header = ()
        names = {folded(name) for name in header}
        score = (sum(w in header for w in wanted), sum(folded(w) in names for w in wanted))
        readings.append((score, (delimiter, quote, header)))
    best = max(score for score, _ in readings)
    if best[1] == 0:
        first = next(text())
        return (*pairs[0], tuple(next(csv.reader([first], delimiter=pairs[0][0], quotechar=pairs[0][1]))))
    return next(reading for score, reading in readings if score == best)


def _fitting(text: Callable[[], Iterator[str]], pairs: list[tuple[str, str]], n_columns: int) -> tuple[str, str]:
    """Return delimiter and quote of the reading under which the most of the first rows have ``n_columns`` values.

    Args:
        text: returns the lines.
        pairs: delimiters and quotes to try.
        n_columns: number of columns; 0: as many as the first row has, two or more.
    """

    def score(pair: tuple[str, str]) -> int:
        records = []
        try:
            for record in itertools.islice(values(text(), *pair), _LOOKED_AT):
                records.append(len(record))  # noqa: PERF401 what comes before an error counts
        except csv.Error:
            pass
        wanted = n_columns or (records[0] if records else 0)
        return records.count(wanted) if wanted > 1 or n_columns else 0

    return max(pairs, key=score)


def _first_row(text: Callable[[], Iterator[str]], pair: tuple[str, str]) -> list[str]:
    try:
        return next(values(text(), *pair), [])
    except csv.Error:
        return []


def _check_settings(
    path: Path,
    data: DataConfig,
    header: tuple[str, ...],
    wanted: Mapping[str, str],
    text: Callable[[], Iterator[str]],
) -> None:
    """Refuse a delimiter or a quote that the user has set where another one gives the wanted columns."""
    if (data.delimiter, data.quote) == (AUTO, AUTO) or all(field in header for field in wanted.values()):
        return
    pairs = list(itertools.product(_DELIMITERS, ('"', "'")))
    delimiter, quote, others = _by_header(text, pairs, tuple(wanted.values()))
    if not all(field in others for field in wanted.values()):
        return
    found = {"delimiter": "tab" if delimiter == "\t" else delimiter, "quote": quote}
    wrong = [(name, value) for name, value in found.items() if getattr(data, name) not in (AUTO, value)]
    said = " and ".join(f"{name} is {getattr(data, name)!r}" for name, _ in wrong)
    raise DataError(
        f"{path}: {said}, with which the header has no {' and no '.join(map(repr, wanted.values()))}\n"
        f"  likely: {_NAMES[delimiter]} separates its columns, and its quotes are {quote}",
        setting(wrong),
        facts=f"its {' and '.join(name for name, _ in wrong)} is another one than its configuration says",
    )


def _check_header(
    path: Path,
    line: int,
    header: tuple[str, ...],
    wanted: Mapping[str, str],
    is_label: Callable[[str], bool],
    first_row: Callable[[], list[str]],
) -> None:
    missing = [field for field in wanted.values() if field not in header]
    if not missing:
        return
    names = {folded(name) for name in header}
    is_named = any(folded(field) in names for field in wanted.values())
    if not is_named:
        cells = first_row()
        at = next((index for index, cell in enumerate(cells) if is_label(cell)), None)
        if at is not None and len(cells) > 1:
            raise DataError(
                f"{path} has no header line: line {line} is a row already ({shown(cells)})",
                f"{_columns_remedy(at, wanted)}; or write a first line with the names of the columns",
                facts=f"it has no header; line {line} is a row",
            )
        if header and header[0].lstrip().startswith(("{", "[")):
            raise DataError(
                f"{path} is JSON, not CSV", "name it .jsonl, with one object a line", facts="it is JSON, not CSV"
            )
    likely = likely_names(header, wanted)
    raise DataError(
        f"{path}: the header in line {line} has no {' and no '.join(repr(field) for field in missing)}\n"
        f"  likely: {likely.mistake}",
        likely.remedy + ("" if is_named else '; a file without a header line needs columns = ["…", "…"] under [data]'),
        facts=f"the header in line {line} lacks {len(missing)} of {len(wanted)} columns",
    )


def _columns_remedy(label_at: int, wanted: Mapping[str, str]) -> str:
    """Return how to name the columns of a file without a header, whose first label is in column ``label_at``."""
    label, text = wanted.get("label_field", ""), wanted.get("text_field", "")
    names = [label, text] if label_at == 0 else [text, *[f"column{i}" for i in range(2, label_at + 1)], label]
    listed = ", ".join(f'"{name}"' for name in names)
    return f"set columns = [{listed}] under [data] in edge.toml (data check: --columns {','.join(names)})"


def _check_repeated(path: Path, line: int, header: tuple[str, ...], wanted: Mapping[str, str]) -> None:
    twice = [field for field in wanted.values() if header.count(field) > 1]
    if twice:
        where = f"the header in line {line}" if line else "columns"
        raise DataError(
            f"{path}: {where} has {twice[0]!r} {header.count(twice[0])} times; which column counts cannot be told",
            "rename the columns that are not meant, or delete them",
            facts=f"{where} has two columns of one name",
        )


def _single_quoted(text: Callable[[], Iterator[str]], delimiter: str, n_columns: int) -> bool:
    """Whether single quotes enclose values: the file has no double ones, and every line is a whole record with them."""
    begins = rf"(?:^|{re.escape(delimiter)})"
    single, double = re.compile(f"{begins}'"), re.compile(f'{begins}"')
    found = False
    for line in text():
        found = found or single.search(line) is not None
        if double.search(line):
            return False
    if not found:
        return False
    try:
        return all(len(record) == n_columns for line in text() for record in values(iter([line]), delimiter, "'"))
    except csv.Error:
        return False
