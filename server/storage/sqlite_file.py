"""What SQLite is asked for beside statements: a transaction that writes from its beginning, and a copy of a file."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection


@contextlib.contextmanager
def immediate(connection: Connection) -> Iterator[None]:
    """Commit all statements of the block together, or none of them; nobody else writes meanwhile.

    Args:
        connection: in autocommit mode.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(DBAPIError):  # SQLite may have rolled back by itself
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


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
