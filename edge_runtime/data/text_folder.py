"""A directory with a folder of text files for each label: the folder's name is the label, each file is one text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edge_runtime.data.problems import NUL_BYTES, Places, counted
from edge_runtime.data.records import Records
from edge_runtime.data.text_file import MARK, open_text
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.problems import Fault

SUFFIXES = (".txt", ".text", ".md")


def folder_records(path: Path, data: DataConfig) -> Records:
    """Return the texts of a directory, each with its folder's name as label, in the order of their names.

    A text loses its last line end, and has a line feed for every other one. Files of other kinds and files beside the
    folders are left out, and the notes count them; hidden ones are left out in silence.

    Args:
        path: the directory.
        data: names of the fields, and the encoding of the files.

    Raises:
        DataError: it cannot be listed; see TextFile.lines, whose error names the file.
    """
    files: list[tuple[str, Path]] = []
    notes: list[str] = []
    names = list(_names(path))
    folders = [name for name in names if (path / name).is_dir()]
    beside = len(names) - len(folders)
    others = 0
    for label in folders:
        for file in _files_under(path / label):
            if file.suffix.lower() in SUFFIXES:
                files.append((label, file))
            else:
                others += 1
    if beside:
        notes.append(f"{counted(beside, 'file')} beside the folders left out: a text's label is the name of its folder")
    if others:
        notes.append(f"{counted(others, 'file')} of other kinds than {', '.join(SUFFIXES)} left out")
    places = Places("file", [_shown(file.relative_to(path)) for _, file in files])

    def texts() -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
        for number, (label, file) in enumerate(files, 1):
            text = _text(file, data.encoding, number)
            yield number, NUL_BYTES if "\0" in text else {data.text_field: text, data.label_field: label}

    return Records(texts(), f"text files by label, in {counted(len(folders), 'folder')}", notes, places)


def _shown(path: Path) -> str:
    """Return a path for messages; its name may be any bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def _text(file: Path, encoding: str, number: int) -> str:
    """Return a file's text.

    Raises:
        DataError: see open_text and TextFile.lines; its facts name the file by its number.
    """
    try:
        lines = [line.lstrip(MARK) if at == 1 else line for at, line in open_text(file, encoding).lines()]
    except DataError as error:
        raise DataError(error.what, error.hint, facts=f"file {number}: {error.facts}") from error
    return "".join(line.rstrip("\r\n") + "\n" if line[-1:] in "\r\n" else line for line in lines).removesuffix("\n")


def _names(path: Path) -> list[str]:
    """Return the names in a directory, in order, without hidden ones."""
    try:
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", "check its permissions", facts="its directory cannot be read"
        ) from error


def _files_under(folder: Path) -> Iterator[Path]:
    for name in _names(folder):
        entry = folder / name
        if entry.is_dir():
            if not entry.is_symlink():  # it may lead back
                yield from _files_under(entry)
        else:
            yield entry
