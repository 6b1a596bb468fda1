"""Puts files into an unpacked root file system, and reads them back. What was interrupted is not taken for finished.

The note is written last, with a hash of each file; without it nothing that Covey writes is started at boot, and
checking says so.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import sync_directory
from edge_runtime.files.hashing import file_sha256
from server.flash import payload
from server.flash.l4t import place_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from server.flash.card import RootFile

PARTIAL = ".covey-partial"
SPARE_BYTES = 64 << 20
"""What is left free on this machine's disk."""


def check_room(rootfs: Path, needed_bytes: int) -> None:
    """Check that this machine's disk has room for the files; StorageError: it has not."""
    free = shutil.disk_usage(rootfs).free
    if free < needed_bytes + SPARE_BYTES:
        raise StorageError(
            f"{rootfs} needs {(needed_bytes + SPARE_BYTES) / 1e6:.0f} MB, and its disk has {free / 1e6:.0f} MB free",
            "make room there",
        )


def write_overlay(rootfs: Path, files: Sequence[RootFile], owner: int = 0) -> None:
    """Write files into a root file system; what was at their paths is replaced, and nothing else is touched.

    Args:
        rootfs: the unpacked root file system.
        files: as for a card; one of them is the note.
        owner: uid and gid of what is written; 0: root's, which needs root here.

    Raises:
        StorageError: something cannot be written; what an earlier call has finished is then not finished any more.
    """
    note = next(file for file in files if file.path == payload.NOTE)
    links = [file for file in files if file.target is not None]
    others = [file for file in files if file.target is None and file is not note]
    assert isinstance(note.data, bytes)  # noqa: S101 payload.py writes it
    try:
        for file in (note, *links):
            place_in(rootfs, file.path).unlink(missing_ok=True)
        for file in others:
            _write(rootfs, file, owner)
        hashes = {file.path: file_sha256(place_in(rootfs, file.path)) for file in others if file.data is not None}
        for file in links:
            _write(rootfs, file, owner)
        whole = json.dumps({**json.loads(note.data), "files": hashes}, indent=2) + "\n"
        write_whole(place_in(rootfs, note.path), whole.encode(), note.mode, owner)
        sync_directory(place_in(rootfs, note.path).parent)
    except OSError as error:
        raise storage_error(error, rootfs) from error


def remove_overlay(rootfs: Path, paths: Iterable[str]) -> None:
    """Remove files that an earlier overlay has left, and this one does not write."""
    for path in paths:
        place_in(rootfs, path).unlink(missing_ok=True)


def read_note(rootfs: Path) -> dict[str, Any] | None:
    """Return the note of a root file system; None: there is none, or it cannot be read."""
    try:
        note = json.loads(place_in(rootfs, payload.NOTE).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and isinstance(note.get("files"), dict) else None


def damaged_files(rootfs: Path, note: dict[str, Any], owner: int = 0) -> list[str]:
    """Return what is wrong with the files of an overlay, by reading each."""
    problems = []
    for path, sha256 in note["files"].items():
        place = place_in(rootfs, path)
        if not place.is_file() or place.is_symlink():
            problems.append(f"{path} is missing")
        elif file_sha256(place) != sha256:
            problems.append(f"{path} is not what was written")
        elif place.stat().st_uid != owner:
            problems.append(f"{path} belongs to user {place.stat().st_uid}, and not to {owner}")
    return problems


def _write(rootfs: Path, file: RootFile, owner: int) -> None:
    place = place_in(rootfs, file.path)
    for parent in reversed(PurePosixPath(file.path).parents):
        folder = place_in(rootfs, str(parent)) if len(parent.parts) > 1 else rootfs
        if not folder.is_dir():
            folder.mkdir(mode=0o755)
            os.chown(folder, owner, owner)
    if file.target is not None:
        place.symlink_to(file.target)
        os.lchown(place, owner, owner)
    elif file.data is None:
        place.mkdir(exist_ok=True)
        place.chmod(file.mode)
        os.chown(place, owner, owner)
    else:
        write_whole(place, file.data, file.mode, owner)


def write_whole(place: Path, data: bytes | Path, mode: int, uid: int, gid: int | None = None) -> None:
    """Write a file under another name, with its owner and mode, and rename it once it is on the disk."""
    partial = place.with_name(place.name + PARTIAL)
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(handle, "wb") as file:
        if isinstance(data, bytes):
            file.write(data)
        else:
            with data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        os.fchown(file.fileno(), uid, uid if gid is None else gid)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(place)
