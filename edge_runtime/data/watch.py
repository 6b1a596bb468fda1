"""Remembers that the device's rows are unusable, until their file changes."""

from __future__ import annotations

import hashlib
import os
from stat import S_ISDIR
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.errors import DataError

Stamp = tuple[int, ...]
"""Inode, bytes and time of the last change, in nanoseconds; then the same of the corrections, where there are any.

Of a directory: bytes of all its files, and a checksum of their names, sizes and times."""


class RowsWatch:
    """Whether the device's rows can be used, as far as the device knows.

    A missing or empty file is known from the file itself. What is wrong with its rows is known once they were read for
    a bundle; it holds for that bundle, and until the file changes.

    Args:
        path: the file of rows.
        corrections: the file of corrections, which need not be there; None: none are read.
    """

    def __init__(self, path: Path, corrections: Path | None = None) -> None:
        self._path, self._corrections = path, corrections
        self._refused: tuple[Stamp | None, str, str] | None = None

    def stamp(self) -> Stamp | None:
        """Return what changes when a file is written; None: there is no file of rows."""
        rows = _stamp(self._path)
        return None if rows is None else (*rows, *((self._corrections and _stamp(self._corrections)) or ()))

    def refuse(self, stamp: Stamp | None, bundle_sha256: str, error: DataError) -> None:
        """Remember an error.

        Args:
            stamp: the file's stamp before it was read.
            bundle_sha256: the bundle that the rows were read for.
            error: why its rows cannot be used.
        """
        self._refused = (stamp, bundle_sha256, error.facts)

    def forget(self) -> None:
        """Judge the file anew: its rows were read without an error, or another server may ask for them."""
        self._refused = None

    def expect(self, bundle_sha256: str) -> None:
        """Judge the file anew where the error was another bundle's, whose labels or tokenizer may differ."""
        if self._refused is not None and self._refused[1] != bundle_sha256:
            self._refused = None

    @property
    def reason(self) -> str | None:
        """Why the rows cannot be used, in counts and line numbers; None: nothing is known against them."""
        stamp = self.stamp()
        if self._refused is not None and self._refused[0] != stamp:
            self._refused = None
        if stamp is None:
            return "its file cannot be read"
        if stamp[1] == 0:
            return "it has no rows"
        return None if self._refused is None else self._refused[2]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
        return _stamp_of_folder(path) if S_ISDIR(found.st_mode) else (found.st_ino, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return None


def _stamp_of_folder(path: Path) -> Stamp:
    """Return the stamp of a directory's files, in whatever order the disk has them."""
    n_bytes = checksum = files = 0
    folders = [os.fspath(path)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue  # a link to nothing, or a file that has just gone
                n_bytes, files = n_bytes + found.st_size, files + 1
                said = f"{entry.path}\0{found.st_size}\0{found.st_mtime_ns}"
                checksum ^= int.from_bytes(hashlib.sha256(os.fsencode(said)).digest()[:8], "big")
    return files, n_bytes, checksum
