"""A file of rows' activations: mapped, only ever appended to, and worth nothing to anyone but the key it was made for.

::

    magic, length and CRC-32 of the key, the key, filled up to 64 bytes
    for each row, filled up to 64 bytes:
      magic, SHA-256 of the row's token ids, tokens, bytes, precision, CRC-32 of the bytes, CRC-32 of this header
      the bytes

Nothing is synced and there is no index: the headers are read when the file is opened, and a row's bytes are checked
when they are first used. A power cut loses rows, and a row that was written by half is no row. The file ends at the
first header that is wrong.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MAGIC = b"COVEYFR1"
_ROW = b"ROW1"
_KEY = struct.Struct("<8sII")
_HEADER = struct.Struct("<4s32sIQII")
_CRC = struct.Struct("<I")
_ALIGNMENT = 64
HEADER_BYTES = _HEADER.size + _CRC.size


def _filled(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def record_bytes(payload_bytes: int) -> int:
    """Return the bytes that a row takes in the file."""
    return _filled(HEADER_BYTES + payload_bytes)


def _head_of(key: bytes) -> bytes:
    head = _KEY.pack(_MAGIC, len(key), zlib.crc32(key)) + key
    return head.ljust(_filled(len(head)), b"\0")


@dataclass
class StoredRow:
    """Where a row is in the file.

    Attributes:
        start: where its record begins.
        tokens: number of its tokens.
        size: bytes of its activations.
        precision: how they are written; only the caller knows what the number means.
        crc: their CRC-32.
        used: when the row was last asked for, in lookups since the file was opened.
        is_checked: whether the bytes have been compared with ``crc``.
    """

    start: int
    tokens: int
    size: int
    precision: int
    crc: int
    used: int = 0
    is_checked: bool = False


class RowFile:
    """An open file of rows. One process at a time may have it open: see front_folder.py.

    Args:
        path: the file; one that is missing, or belongs to another key, is made anew.
        key: what it belongs to.

    Attributes:
        rows: the rows in it, by the SHA-256 of their token ids.
        size: bytes of the file.
        lookups: rows that were asked for so far.

    Raises:
        OSError: the file cannot be read or made.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self.path, self._head = path, _head_of(key)
        self.rows: dict[bytes, StoredRow] = {}
        self.lookups = 0
        self._map: mmap.mmap | None = None
        self._file = _opened(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if os.pread(self._file.fileno(), len(self._head), 0) == self._head:
                self._cut(self._scan())
            else:
                self._cut(0)
                self._write(self._head)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; what was read of it stays mapped until it is dropped."""
        self._map = None
        self._file.close()

    def clear(self) -> None:
        """Remove every row. The old file stays mapped for those who read it."""
        self.keep(())

    def find(self, digest: bytes) -> tuple[StoredRow, memoryview] | None:
        """Return a row and its bytes in the mapped file; None: there is none, or it is damaged and now forgotten."""
        self.lookups += 1
        row = self.rows.get(digest)
        if row is None:
            return None
        first = row.start + HEADER_BYTES
        data = memoryview(self._mapped(first + row.size))[first : first + row.size]
        if not row.is_checked:
            if zlib.crc32(data) != row.crc:
                del self.rows[digest]
                return None
            row.is_checked = True
        row.used = self.lookups
        return row, data

    def add(self, digest: bytes, tokens: int, precision: int, data: bytes) -> None:
        """Append a row.

        Args:
            digest: SHA-256 of its token ids.
            tokens: their number.
            precision: see StoredRow.
            data: its activations.

        Raises:
            OSError: the disk is full or fails; the file is as it was.
        """
        row = StoredRow(self.size, tokens, len(data), precision, zlib.crc32(data), self.lookups, is_checked=True)
        header = _HEADER.pack(_ROW, digest, tokens, len(data), precision, row.crc)
        record = header + _CRC.pack(zlib.crc32(header)) + data
        self._write(record.ljust(_filled(len(record)), b"\0"))
        self.rows[digest] = row

    def keep(self, digests: Iterable[bytes]) -> None:
        """Keep these rows only: they are copied into a new file, which takes the place of this one.

        Raises:
            OSError: the disk is full or fails; the file is as it was.
        """
        kept = sorted(((digest, self.rows[digest]) for digest in digests), key=lambda entry: entry[1].start)
        beside = self.path.with_suffix(".new")
        file = _opened(beside, os.O_TRUNC)
        starts = []
        try:
            at = _written(file, self._head, 0)
            for _, row in kept:
                starts.append(at)
                stop = row.start + record_bytes(row.size)
                at = _written(file, memoryview(self._mapped(stop))[row.start : stop], at)
            beside.replace(self.path)
        except OSError:
            file.close()
            beside.unlink(missing_ok=True)
            raise
        self.close()
        self._file, self.size = file, at
        self.rows = dict(kept)
        for start, (_, row) in zip(starts, kept, strict=True):
            row.start = start

    def _scan(self) -> int:
        """Read the headers; return where the last whole row ends."""
        at, limit = len(self._head), self.size
        mapped = self._mapped(limit)
        while at + HEADER_BYTES <= limit:
            header = mapped[at : at + _HEADER.size]
            magic, digest, tokens, size, precision, crc = _HEADER.unpack(header)
            (written,) = _CRC.unpack_from(mapped, at + _HEADER.size)
            stop = at + record_bytes(size)
            if magic != _ROW or written != zlib.crc32(header) or stop > limit:
                break
            self.rows[digest] = StoredRow(at, tokens, size, precision, crc)
            at = stop
        return at

    def _mapped(self, stop: int) -> mmap.mmap:
        """Return the file as mapped memory of at least ``stop`` bytes."""
        if self._map is None or len(self._map) < stop:
            self._map = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
        return self._map

    def _cut(self, size: int) -> None:
        if size < self.size:
            self._map = None
            os.ftruncate(self._file.fileno(), size)
        self.size = size

    def _write(self, data: bytes) -> None:
        try:
            self.size = _written(self._file, data, self.size)
        except OSError:
            os.ftruncate(self._file.fileno(), self.size)
            raise


def _opened(path: Path, more: int = 0) -> FileIO:
    """Open a file for reading and writing, that only its owner may read; make it if it is not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | more
    return FileIO(path, "r+", opener=lambda name, _flags: os.open(name, flags, 0o600))


def _written(file: FileIO, data: bytes | memoryview, at: int) -> int:
    """Write all of ``data`` at an offset; return where it ends."""
    left = memoryview(data)
    while left:
        count = os.pwrite(file.fileno(), left, at)
        left, at = left[count:], at + count
    return at
