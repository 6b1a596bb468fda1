"""Checks a state directory without changing it: can it be written, and is its journal whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.files.writable import check_writable
from edge_runtime.store.journal import JOURNAL_FILE, read_journal

if TYPE_CHECKING:
    from pathlib import Path

SETTING = "state_dir in edge.toml"


def check_state_writable(path: Path) -> None:
    """Check that a state directory can be written; it need not exist yet.

    Raises:
        StorageError: it is a file, read-only or full.
    """
    check_writable(path, SETTING)


def check_state_dir(path: Path) -> None:
    """Check that a state directory can be written and that its journal is whole; nothing in it is changed.

    Raises:
        JournalDamagedError: the journal is damaged or of another version. ``covey-edge run`` sets it aside by itself.
        StorageError: the directory is a file, read-only or full, or the journal cannot be read.
    """
    check_state_writable(path)
    read_journal(path / JOURNAL_FILE)
