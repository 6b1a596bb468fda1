"""The ledger's SQLite file: transactions whose errors name what to do. Only this room uses it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from edge_runtime.errors import CoveyError, StorageError, cause_of, storage_error
from server.errors import JobError
from server.storage.schema import check_version, create, is_new, upgrade
from server.storage.sqlite_file import copy_file, immediate
from server.storage.tables import METADATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Executable

_RESTORE = (
    "restore it from a backup (covey backup restore), or save what is left (sqlite3 {path} .recover | sqlite3 "
    "recovered.sqlite) and put that in its place; a new job needs another --state-dir"
)
_FULL = (sqlite3.SQLITE_FULL,)
_READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """One SQLite file with the ledger's schema. Safe to use from several threads.

    Whatever is wrong with the file or with what it holds becomes a StorageError that names the file.

    Args:
        path: the file; created with the schema if it does not exist, upgraded if it has an older one.
        read_only: for commands that only read; the file must exist.
        durable: whether every commit is synced to disk, so that a power cut loses nothing.
        may_begin: called before the schema is written to a new or empty file; raises where that would be a mistake.

    Attributes:
        path: the file.

    Raises:
        StorageError: the file cannot be opened, is damaged, or has a newer schema.
        JobError: ``read_only``, and the file does not exist.
    """

    def __init__(
        self, path: Path, *, read_only: bool, durable: bool, may_begin: Callable[[], None] = lambda: None
    ) -> None:
        if read_only and not path.exists():
            raise JobError(f"there is no ledger at {path}", "run a job first, or give its --state-dir")
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error
        self._engine = sqlalchemy.create_engine("sqlite://", creator=self._connect, poolclass=StaticPool)
        try:
            with self.reading():
                # SQLAlchemy begins and commits nothing here: transaction() does.
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._open(read_only=read_only, durable=durable, may_begin=may_begin)
        except BaseException:
            self._engine.dispose()
            raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)

    def _open(self, *, read_only: bool, durable: bool, may_begin: Callable[[], None]) -> None:
        self._run("PRAGMA temp_store = MEMORY")  # a query needs no file descriptor then
        begins = is_new(self._connection)
        if begins and read_only:
            raise StorageError(
                f"the ledger {self.path} is empty ({self.path.stat().st_size} bytes)", _RESTORE.format(path=self.path)
            )
        if begins:
            may_begin()
        is_older = not begins and check_version(self._connection, self.path)
        if is_older and read_only:
            raise StorageError(
                f"{self.path} is of an older Covey", "covey serve upgrades it when it starts, and keeps a copy"
            )
        if not read_only:
            self._run("PRAGMA journal_mode = WAL")
            # With FULL, a power cut loses nothing that was acknowledged.
            self._run(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._check_pages()
        if is_older:
            upgrade(self._connection, self.path)
        if not read_only:
            self._run("PRAGMA foreign_keys = ON")
        if begins:
            create(self._connection)
        found = set(sqlalchemy.inspect(self._connection).get_table_names())
        if missing := METADATA.tables.keys() - found:
            raise self.damaged(f"it has no table {', '.join(sorted(missing))}")
        self._inode = self.path.stat().st_ino

    def _run(self, statement: str) -> Any:  # noqa: ANN401 SQLite's own value
        result = self._connection.exec_driver_sql(statement)
        return result.first() if result.returns_rows else None

    def _check_pages(self) -> None:
        """Check every page before a server writes: better now than in mid-job."""
        found = self._run("PRAGMA quick_check(1)")[0]
        if found != "ok":
            raise self.damaged(" ".join(str(found).split()))

    def _check_there(self) -> None:
        """Check that the file is still in its place: SQLite would go on writing to one that was removed."""
        try:
            is_there = self.path.stat().st_ino == self._inode
        except OSError:
            is_there = False
        if not is_there:
            raise StorageError(
                f"the ledger {self.path} was removed, replaced or unmounted while it was in use",
                "put it back where it was, and start again: what was written since is lost",
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._engine.dispose()

    def damaged(self, cause: str) -> StorageError:
        """Return the error of a ledger whose content is not what Covey writes."""
        return StorageError(f"the ledger {self.path} is damaged: {cause}", _RESTORE.format(path=self.path))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn any exception of a block that reads the ledger, or decodes what is in it, into a StorageError.

        Raises:
            StorageError: names the file and what to do.
        """
        try:
            yield
        except CoveyError:
            raise
        except DBAPIError as error:
            raise self._failed(error.orig, "read") from error
        except sqlite3.Error as error:
            raise self._failed(error, "read") from error
        except Exception as error:
            raise self.damaged(cause_of(error)) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._check_there()
        try:
            yield
        except DBAPIError as error:
            raise self._failed(error.orig, "write") from error
        except sqlite3.Error as error:
            raise self._failed(error, "write") from error

    def _failed(self, error: BaseException | None, verb: str) -> StorageError:
        """Return the error of a statement that failed; its hint follows from SQLite's code."""
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        what = f"cannot {verb} the ledger {self.path}: {error}"
        if code in _FULL:
            return StorageError(what, "free some space and start again; nothing was lost")
        if code in _BUSY:
            return StorageError(what, "end the other program that uses it (sqlite3, a backup), and start again")
        if code in _READ_ONLY:
            return StorageError(
                what, f"check that {self.path.parent} is there and mounted, its owner and permissions, and its disk"
            )
        return self.damaged(str(error))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block together, or none of them.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        with self._lock, self._writing(), immediate(self._connection):
            yield

    def write(self, statement: Executable, values: Mapping[str, object] | None = None) -> int:
        """Execute one statement with the values of its parameters; return how many rows it changed.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        with self._lock, self._writing():
            return int(self._connection.execute(statement, values or {}).rowcount)

    def write_many(self, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute one statement per row. For use within a transaction."""
        if rows:
            self._connection.execute(statement, rows)

    def rows(self, query: Executable, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """Return a query's rows, each as a dictionary by column.

        Raises:
            StorageError: the file is damaged or cannot be read.
        """
        with self._lock, self.reading():
            result = self._connection.execute(query, values or {})
            columns = [str(name) for name in result.keys()]  # noqa: SIM118 not a dictionary; SQLAlchemy has a class of names
            return [dict(zip(columns, row, strict=True)) for row in result]


def copy_database(path: Path, target: Path) -> None:
    """Write a consistent copy of a ledger; a server may write to it meanwhile.

    Args:
        path: the ledger.
        target: the copy, which does not exist yet.

    Raises:
        JobError: there is no ledger.
        StorageError: it is damaged, or the copy cannot be written.
    """
    if not path.exists():
        raise JobError(f"there is no ledger at {path}", "run a job first, or give its --state-dir")
    try:
        copy_file(path, target)
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot copy the ledger {path} to {target.parent}: {error}", "check both disks, and that there is space"
        ) from error
