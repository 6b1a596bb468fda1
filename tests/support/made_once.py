"""Folders that are made once for all the processes of a test run (pytest-xdist's workers), and then only read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest


def shared_root(factory: pytest.TempPathFactory) -> Path:
    """Return a folder that every worker of this run has."""
    base = factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "made-once"
    root.mkdir(exist_ok=True)
    return root


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock, which is a file; the kernel lets it go when its holder ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder; whoever comes first makes it, and the others wait.

    Args:
        folder: where it is.
        make: makes it there, since a build must not be moved; what one that failed has left is removed before.
    """
    made = folder.with_name(f"{folder.name}.made")
    with alone(folder.with_name(f"{folder.name}.lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder
