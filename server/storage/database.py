"""What every ledger's database can do: transactions, writes and questions, with errors that name what to do.

Only this room uses it. sqlite_database.py has the file of a server on one machine, postgres_database.py a server's
connection to PostgreSQL.
"""

from __future__ import annotations

import abc
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from edge_runtime.errors import CoveyError, StorageError, cause_of
from server.storage.tables import text_of_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Executable


class Database(abc.ABC):
    """A database with the ledger's schema. Safe to use from several threads.

    Whatever is wrong with it, or with what it holds, becomes a StorageError that names it.
    """

    is_shared = False
    """Whether servers on other machines may have it in turn."""
    _raw_errors: tuple[type[Exception], ...] = ()
    """Errors of the driver that can come without SQLAlchemy's around them."""
    _connection: Connection
    """In autocommit mode: SQLAlchemy begins and commits nothing here, transaction() does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @abc.abstractmethod
    def close(self) -> None:
        """Close it."""

    @abc.abstractmethod
    def now_s(self) -> float:
        """Return the time, in seconds since 1970, by a clock that all servers of the ledger share."""

    @property
    def is_lost(self) -> bool:
        """Whether this server cannot write now, and another one may be taking its place; a file is never lost."""
        return False

    def is_ours(self) -> bool:
        """Whether nobody else can have written since this server did; asks the database."""
        return True

    def now_text(self) -> str:
        """Return this time as the ledger writes it."""
        return text_of_s(self.now_s())

    @abc.abstractmethod
    def damaged(self, cause: str) -> StorageError:
        """Return the error of a ledger whose content is not what Covey writes."""

    @abc.abstractmethod
    def failed(self, error: BaseException | None, verb: str) -> StorageError:
        """Return the error of a statement that failed; its hint follows from the database's code."""

    @abc.abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Commit all writes of the block together, or none of them.

        Raises:
            StorageError: nothing was written.
        """

    @contextlib.contextmanager
    def synced_at_the_end(self) -> Iterator[None]:
        """Let what this thread writes in the block wait for the disk once, at its end, where the database can do that.

        Each write is committed as before: nothing is rolled back with another, and the end of the process loses
        nothing. A power cut before the end may lose the last of them, so nothing may be promised before.
        """
        yield

    @abc.abstractmethod
    def write(self, statement: Executable, values: Mapping[str, object] | None = None) -> int:
        """Execute one statement with the values of its parameters; return how many rows it changed.

        Raises:
            StorageError: nothing was written.
        """

    @abc.abstractmethod
    def rows(self, query: Executable, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """Return a query's rows, each as a dictionary by column.

        Raises:
            StorageError: it is damaged or cannot be read.
        """

    def write_many(self, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute one statement per row. For use within a transaction."""
        if rows:
            self._connection.execute(statement, rows)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn any exception of a block that reads the ledger, or decodes what is in it, into a StorageError.

        Raises:
            StorageError: names the ledger and what to do.
        """
        try:
            yield
        except CoveyError:
            raise
        except DBAPIError as error:
            raise self.failed(error.orig, "read") from error
        except self._raw_errors as error:
            raise self.failed(error, "read") from error
        except Exception as error:
            raise self.damaged(cause_of(error)) from error

    def _asked(self, query: Executable, values: Mapping[str, object] | None) -> list[dict[str, Any]]:
        result = self._connection.execute(query, values or {})
        columns = [str(name) for name in result.keys()]  # noqa: SIM118 not a dictionary; SQLAlchemy has a class of names
        return [dict(zip(columns, row, strict=True)) for row in result]
