"""Whether a folder can be written, found out by writing to it: a disk may be full or read-only."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from edge_runtime.errors import StorageError, storage_error

_PROBE_BYTES = 1 << 18


def check_writable(folder: Path, setting: str) -> None:
    """Check that files can be written below a folder: a probe of 256 KB is written, synced and removed.

    A folder that does not exist is not made: the nearest folder above it is checked.

    Args:
        folder: the folder.
        setting: what names the folder, for the error's hint: ``state_dir in edge.toml``.

    Raises:
        StorageError: the folder is a file, read-only or full; the message names it.
    """
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    if not place.is_dir():
        raise StorageError(f"{place} is not a folder", f"move it away, or set {setting}")
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".covey-probe-") as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise _named(error, folder, place, setting) from error


def _named(error: OSError, folder: Path, place: Path, setting: str) -> StorageError:
    where = str(folder) if place == folder else f"{folder} (its disk at {place})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk of {where} is full", f"free some space, or set {setting} to another disk")
    if error.errno == errno.EROFS:
        return StorageError(
            f"{where} is on a read-only file system",
            f"mount it writable (a worn-out SD card turns read-only by itself), or set {setting} to another disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StorageError(
            f"{where} cannot be written: {error.strerror}",
            f"give the folder to the user that runs Covey (chown), or set {setting} to another folder",
        )
    return storage_error(error, where)
