"""The folder of the two virtual environments, and what says that one of them is whole.

::

    root/
      env-a/, env-b/   virtual environments (slots); slot.json in one, written last, says that it is whole
      current          link to the slot that runs: root/current/bin/covey-edge
      state.json       which slot is current, what is on trial (state.py)
      request.json     a switch that somebody has asked the launcher for (requests.py)
      install.lock     held while a slot is written, and while the launcher changes slots
      launcher.lock    held by the launcher
      launcher.pyz     the launcher (launcher_file.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.aside import remove, set_aside
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.update.state import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKER_FILE = "slot.json"
CURRENT = "current"
INSTALL_LOCK = "install.lock"
LAUNCHER_LOCK = "launcher.lock"
PATIENCE_S = 1.0
"""Seconds to wait for a lock that a launcher holds for a moment, while it looks."""


@dataclass(frozen=True)
class Installed:
    """What is in a slot.

    Attributes:
        slot: ``a`` or ``b``.
        version: version of Covey.
        sha256: SHA-256 of its wheel, in hex.
    """

    slot: str
    version: str
    sha256: str


def slot_path(root: Path, slot: str) -> Path:
    """Return the folder of a slot."""
    return root / f"env-{slot}"


def slot_python(root: Path, slot: str) -> Path:
    """Return the interpreter of a slot."""
    return slot_path(root, slot) / "bin" / "python"


def other(slot: str) -> str:
    """Return the other slot."""
    return SLOTS[1 - SLOTS.index(slot)]


def installed_in(root: Path, slot: str) -> Installed | None:
    """Return what is in a slot; None where it is empty, not whole, or its interpreter is gone."""
    try:
        table = json.loads((slot_path(root, slot) / MARKER_FILE).read_bytes())
        found = Installed(slot, str(table["version"]), str(table["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if os.access(slot_python(root, slot), os.X_OK) else None


def installed(root: Path) -> dict[str, Installed]:
    """Return what is in the slots that can run."""
    found = {slot: installed_in(root, slot) for slot in SLOTS}
    return {slot: here for slot, here in found.items() if here is not None}


def clear_slot(root: Path, slot: str) -> None:
    """Empty a slot: its marker goes first, so that a slot without all of its files never counts as whole.

    Raises:
        StorageError: something in it cannot be removed.
    """
    path = slot_path(root, slot)
    try:
        if path.is_dir() and not path.is_symlink():
            (path / MARKER_FILE).unlink(missing_ok=True)
            sync_directory(path)
        remove(path)
    except OSError as error:
        raise storage_error(error, path) from error


def mark_whole(root: Path, found: Installed) -> None:
    """Write a slot's marker, after all its other files are on disk.

    Raises:
        StorageError: the disk is full or not writable.
    """
    os.sync()
    write_atomically(slot_path(root, found.slot) / MARKER_FILE, json.dumps(asdict(found)).encode())


def linked_slot(root: Path) -> str | None:
    """Return the slot that the link ``current`` names; None where there is no such link."""
    try:
        name = (root / CURRENT).readlink().name
    except OSError:
        return None
    return next((slot for slot in SLOTS if name == f"env-{slot}"), None)


def link_slot(root: Path, slot: str) -> None:
    """Let ``current`` name a slot, by an atomic rename.

    Raises:
        StorageError: the link cannot be written.
    """
    if linked_slot(root) == slot:
        return
    link, temporary = root / CURRENT, root / f"{CURRENT}.tmp"
    try:
        remove(temporary)
        if link.is_dir() and not link.is_symlink():
            set_aside(link, f"{link} is a folder, and a link is to be there")
        temporary.symlink_to(f"env-{slot}")
        temporary.replace(link)
        sync_directory(root)
    except OSError as error:
        raise storage_error(error, link) from error


class LockedError(StorageError):
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(root: Path, name: str, what: str, hint: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock of the folder until the block ends; the kernel frees it where the process dies.

    Args:
        root: the folder of the slots.
        name: INSTALL_LOCK or LAUNCHER_LOCK.
        what: the error's text where another process holds it.
        hint: what to do then.
        patience_s: seconds to wait for it.

    Raises:
        LockedError: another process holds it.
        StorageError: it cannot be written.
    """
    path = root / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        until = time.monotonic() + patience_s
        while not _has_locked(descriptor, path):
            if time.monotonic() >= until:
                raise LockedError(what, hint)
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    return True
