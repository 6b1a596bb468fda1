"""Copies of SQLite files."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def copy_file(path: Path, target: Path) -> None:
    """Write a consistent copy of a database, as one file without a log beside it; somebody may write to it meanwhile.

    Args:
        path: the database.
        target: the copy, which does not exist yet.

    Raises:
        sqlite3.Error: it is damaged, or the copy cannot be written.
    """
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
