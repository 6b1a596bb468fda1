"""A job.toml as text, as a page takes it: its table, and the line that an error is about."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import ConfigError, wall

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = re.compile(r"\s*\[([A-Za-z0-9_.\- ]+)\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")
_PATH = re.compile(r"`\$\.?([A-Za-z0-9_.\-]*)")
_UNKNOWN = re.compile(r"unknown field `([A-Za-z0-9_-]+)`")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_table(text: str) -> dict[str, Any]:
    """Return the table of a job.toml.

    Raises:
        ConfigError: it is no TOML; the error names the line.
    """
    with wall(lambda cause: ConfigError(f"this is no TOML: {cause}", "correct that line; a text needs quotes")):
        return msgspec.toml.decode(text, type=dict[str, Any])


def at_line(error: ConfigError, text: str) -> ConfigError:
    """Return an error of a job with the line of job.toml that it is about, where one of its fields is named.

    Args:
        error: of the job's fields, or of two that contradict each other.
        text: the job.toml.
    """
    lines = text.splitlines()
    places = dict[str, int]()
    for path, number in _places(lines):
        places.setdefault(path, number)
    for path in _named(error.what):
        if path in places:
            number = places[path]
            return ConfigError(f"line {number}, {lines[number - 1].strip()[:100]!r}: {error.what}", error.hint)
    return error


def _places(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the dotted path of each table and field, and then its last part alone, with the number of its line."""
    alone = list[tuple[str, int]]()
    table = ""
    for number, line in enumerate(lines, 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            table = _plain(header[1])
            yield table, number
        elif key is not None:
            path = f"{table}.{_plain(key[1])}" if table else _plain(key[1])
            yield path, number
            alone.append((path.rpartition(".")[2], number))
    yield from alone


def _plain(path: str) -> str:
    return re.sub(r"\s", "", path)


def _named(what: str) -> Iterator[str]:
    """Yield the fields that an error's words may be about, the likeliest first."""
    path, unknown = _PATH.search(what), _UNKNOWN.search(what)
    table = path[1] if path is not None else ""
    if unknown is not None:
        yield f"{table}.{unknown[1]}" if table else unknown[1]
    while table:
        yield table
        table = table.rpartition(".")[0]
    yield from _WORD.findall(what)
