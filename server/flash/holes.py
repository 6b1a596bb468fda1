"""Copies parts of files; what is a hole in the source is one in the copy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 1 << 20


def copy_part(source: Path, start_bytes: int, size_bytes: int, target: Path, at_bytes: int) -> None:
    """Copy a part of a file into another one, whose bytes there must be zero or a hole.

    Args:
        source: is read.
        start_bytes: where the part begins in it.
        size_bytes: how long it is.
        target: is written; it is made where it is not there, and is long enough afterwards.
        at_bytes: where the part begins in it.

    Raises:
        OSError: the disk is full.
    """
    end = start_bytes + size_bytes
    read = os.open(source, os.O_RDONLY)
    write = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.fstat(write).st_size < at_bytes + size_bytes:
            os.ftruncate(write, at_bytes + size_bytes)
        place = start_bytes
        while place < end:
            try:
                place = os.lseek(read, place, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            until = min(end, os.lseek(read, place, os.SEEK_HOLE))
            while place < until:
                block = os.pread(read, min(_BLOCK_BYTES, until - place), place)
                place += _write(write, block, at_bytes + place - start_bytes)
        os.fsync(write)
    finally:
        os.close(write)
        os.close(read)


def _write(file: int, data: bytes, offset: int) -> int:
    """Write all of a block; return its length."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)
    return done
