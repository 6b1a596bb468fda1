"""Writes files so that a power cut leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error
from edge_runtime.files.aside import set_aside

if TYPE_CHECKING:
    from pathlib import Path


def write_atomically(path: Path, data: bytes, *, is_private: bool = False) -> None:
    """Write a file so that it is either the old one or the whole new one, also after a power cut.

    A folder that is where the file is to be is set aside.

    Args:
        path: the file.
        data: its content.
        is_private: whether only its owner may read it (mode 0600), from its first byte on.

    Raises:
        StorageError: disk full, or not writable; the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (temporary, path):
            if place.is_dir():
                set_aside(place, f"{place} is a folder, and a file is to be there")
        if is_private:
            temporary.unlink(missing_ok=True)  # one that others may read is no place for a key
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600 if is_private else 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one that says what is wrong
            temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def sync_file(path: Path) -> None:
    """Make a file that another library wrote last."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames in a directory last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
