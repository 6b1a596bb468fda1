"""Bounds the files of front activations together: the files, and in a file the rows, not used for longest go first."""

from __future__ import annotations

import fcntl
import logging
import os
from io import FileIO
from typing import TYPE_CHECKING

from edge_runtime.fronts.row_file import RowFile, record_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.fronts.front_key import FrontKey
    from edge_runtime.fronts.row_file import StoredRow

_LOG = logging.getLogger(__name__)
MB = 1_000_000
DEFAULT_MB = 256
"""Bound of a folder that nobody has said anything about."""
_SUFFIX = ".front"
_LEAST_GAIN = 8
"""A file is copied to be rid of rows where they are at least this part of it: copying costs time, and wears cards."""
_EPOCHS = 2
"""Rows that no lookup has asked for in this many epochs are out of use."""


class FrontFolder:
    """The files of one device, or of one server.

    Args:
        root: their folder; it is made when a file is first opened.
        most_bytes: bound of all files together; while rows are thrown out of a file, that file is there twice.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root, self._most_bytes = root, most_bytes
        self._lock: FileIO | None = None
        self._says_no = False

    def open(self, key: FrontKey, live_rows: int) -> FrontRows | None:
        """Open the file of a bundle and split; what is in it of another key is removed.

        Args:
            key: what the file belongs to.
            live_rows: number of rows in use: an epoch.

        Returns:
            The open file; None where nothing can be kept: it is switched off, another process has the folder, or the
            disk says no. The log says why, once.
        """
        if self._most_bytes <= 0:
            return None
        try:
            self.root.mkdir(parents=True, exist_ok=True)  # somebody may have removed the state directory
            if self._lock is None:
                self._lock = _locked(self.root / "lock")
                for left_over in self.root.glob("*.new"):
                    left_over.unlink()
            file = RowFile(self.root / f"{key.bundle_sha256[:16]}-{key.split}{_SUFFIX}", key.encode())
            os.utime(file.path)
        except OSError as error:
            self._refuse(f"{self.root}: {error.strerror or error}")
            return None
        return FrontRows(self, file, live_rows)

    def _refuse(self, reason: str) -> None:
        if not self._says_no:
            _LOG.warning("front activations are not kept, so that each is computed anew: %s", reason)
        self._says_no = True

    def make_room(self, file: RowFile, needed: int, live_rows: int) -> bool:
        """Throw out what is not used, until ``needed`` more bytes fit; return whether they do.

        Raises:
            OSError: the disk fails.
        """
        others = {path: path.stat() for path in self.root.glob(f"*{_SUFFIX}") if path != file.path}
        over = sum(stat.st_size for stat in others.values()) + file.size + needed - self._most_bytes
        for path, stat in sorted(others.items(), key=lambda entry: entry[1].st_mtime):
            if over <= 0:
                break
            path.unlink()
            over -= stat.st_size
        return over <= 0 or _drop_stale(file, over, live_rows)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _drop_stale(file: RowFile, over: int, live_rows: int) -> bool:
    """Drop rows that are out of use, oldest first, if that frees ``over`` bytes and is worth a copy of the file."""
    out_of_use = file.lookups - _EPOCHS * live_rows
    stale = [entry for entry in file.rows.items() if entry[1].tokens and entry[1].used < out_of_use]
    dead = file.size - sum(record_bytes(row.size) for row in file.rows.values())
    wanted = max(over, file.size // _LEAST_GAIN)
    dropped: set[bytes] = set()
    for digest, row in sorted(stale, key=_last_use):
        if dead >= wanted:
            break
        dropped.add(digest)
        dead += record_bytes(row.size)
    if dead < wanted:
        return False
    before = file.size
    file.keep(digest for digest in file.rows if digest not in dropped)
    return before - file.size >= over


def _last_use(entry: tuple[bytes, StoredRow]) -> int:
    return entry[1].used


def _locked(path: Path) -> FileIO:
    lock = FileIO(path, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise BlockingIOError(error.errno, "another process uses this folder") from error
    except OSError:
        lock.close()
        raise
    return lock


class FrontRows:
    """The rows of one key. FrontFolder makes it.

    Args:
        folder: bounds the file.
        file: the file.
        live_rows: see FrontFolder.open.

    Attributes:
        live_rows: may change while the file is open.
    """

    def __init__(self, folder: FrontFolder, file: RowFile, live_rows: int) -> None:
        self._folder, self.file, self.live_rows = folder, file, live_rows
        self._tries_at = 0
        self._says_no = False

    def find(self, digest: bytes) -> tuple[StoredRow, memoryview] | None:
        """See RowFile.find; what the disk does not give is not there."""
        try:
            return self.file.find(digest)
        except OSError as error:
            self._stop(f"{self.file.path}: {error.strerror or error}")
            return None

    @property
    def is_full(self) -> bool:
        """Whether no row is kept for now: there was no room, or the disk has failed, less than an epoch ago."""
        return self.file.lookups < self._tries_at

    def has(self, digest: bytes) -> bool:
        """Whether a row is there, which is about to be looked up: it is in use from now on."""
        row = self.file.rows.get(digest)
        if row is not None:
            row.used = self.file.lookups
        return row is not None

    def add(self, digest: bytes, tokens: int, precision: int, data: bytes) -> bool:
        """Keep a row, if there is room for it: rows that are in use are not thrown out for others.

        Args:
            digest: see RowFile.add.
            tokens: their number; 0: this is no row, but belongs to all rows, and is never thrown out.
            precision: see RowFile.add.
            data: see RowFile.add.

        Returns:
            Whether it is kept.
        """
        if self.is_full:
            return False
        try:
            if self._folder.make_room(self.file, record_bytes(len(data)), self.live_rows):
                self.file.add(digest, tokens, precision, data)
                return True
            self._tries_at = self.file.lookups + self.live_rows  # once an epoch is often enough to look for such rows
        except OSError as error:
            self._stop(f"{self.file.path}: {error.strerror or error}")
        return False

    def clear(self) -> None:
        """Remove every row."""
        try:
            self.file.clear()
        except OSError as error:
            self._stop(f"{self.file.path}: {error.strerror or error}")

    def _stop(self, reason: str) -> None:
        if not self._says_no:
            _LOG.warning("no more front activations are kept for now: %s", reason)
        self._says_no, self._tries_at = True, self.file.lookups + self.live_rows

    def close(self) -> None:
        """Close the file."""
        self.file.close()
