"""A transaction as a block: all of its statements are committed together, or none of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


def begin(connection: Connection) -> None:
    """Begin a transaction; in SQLite it writes from its beginning, so that nobody else writes meanwhile.

    Args:
        connection: in autocommit mode.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")


@contextlib.contextmanager
def begun(connection: Connection) -> Iterator[None]:
    """Commit all statements of the block together, or none of them.

    Args:
        connection: in autocommit mode.
    """
    begin(connection)
    try:
        yield
    except BaseException:
        with contextlib.suppress(DBAPIError):  # the database may have rolled back by itself, or be gone
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
