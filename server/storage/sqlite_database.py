"""The ledger's SQLite file, for a server on one machine. Only this room uses it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from edge_runtime.errors import StorageError, storage_error
from server.errors import JobError
from server.storage.database import Database
from server.storage.schema import check_version, create, is_new, upgrade
from server.storage.sqlite_file import copy_file
from server.storage.tables import METADATA
from server.storage.transactions import begun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Executable

_RESTORE = (
    "restore it from a backup (covey backup restore), or save what is left (sqlite3 {path} .recover | sqlite3 "
    "recovered.sqlite) and put that in its place; a new job needs another --state-dir"
)
_SYNCED = "FULL"
"""SQLite's word for commits that a power cut does not undo."""
_FULL = (sqlite3.SQLITE_FULL,)
_READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteDatabase(Database):
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

    _raw_errors = (sqlite3.Error,)

    def __init__(
        self, path: Path, *, read_only: bool, durable: bool, may_begin: Callable[[], None] = lambda: None
    ) -> None:
        if read_only and not path.exists():
            raise JobError(f"there is no ledger at {path}", "run a job first, or give its --state-dir")
        super().__init__()
        self.path = path
        self._can_sync_later = self._is_dirty = False
        self._log: int | None = None
        self._transactions = 0  # that are open, one within the other
        self._syncs_later: int | None = None  # the thread in whose block nothing is synced by itself
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error
        self._engine = sqlalchemy.create_engine("sqlite://", creator=self._connect, poolclass=StaticPool)
        try:
            with self.reading():
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
        is_older = not begins and check_version(self._connection, str(self.path))
        if is_older and read_only:
            raise StorageError(
                f"{self.path} is of an older Covey", "covey serve upgrades it when it starts, and keeps a copy"
            )
        if not read_only:
            has_wal = self._run("PRAGMA journal_mode = WAL")[0] == "wal"
            # With FULL, a power cut loses nothing that was acknowledged.
            self._run(f"PRAGMA synchronous = {_SYNCED if durable else 'OFF'}")
            self._can_sync_later = has_wal and durable
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
        if self._log is not None:
            os.close(self._log)
            self._log = None
        self._connection.close()
        self._engine.dispose()

    def now_s(self) -> float:
        """See Database: this machine's clock, since nobody else has the file."""
        return time.time()

    def damaged(self, cause: str) -> StorageError:
        """Return the error of a ledger whose content is not what Covey writes."""
        return StorageError(f"the ledger {self.path} is damaged: {cause}", _RESTORE.format(path=self.path))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._check_there()
        try:
            yield
        except DBAPIError as error:
            raise self.failed(error.orig, "write") from error
        except sqlite3.Error as error:
            raise self.failed(error, "write") from error

    def failed(self, error: BaseException | None, verb: str) -> StorageError:
        """See Database."""
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
        """See Database."""
        with self._lock, self._writing():
            with begun(self._connection):
                self._transactions += 1
                try:
                    yield
                finally:
                    self._transactions -= 1
            self._wrote()

    def write(self, statement: Executable, values: Mapping[str, object] | None = None) -> int:
        """See Database."""
        with self._lock, self._writing():
            changed = int(self._connection.execute(statement, values or {}).rowcount)
            self._wrote()
            return changed

    @contextlib.contextmanager
    def synced_at_the_end(self) -> Iterator[None]:
        """See Database. In WAL mode SQLite keeps every commit in order in one file, which is synced at the end."""
        with self._lock:
            log = self._open_log()
        if log is None:
            yield  # each by itself, as always
            return
        with self._lock, self._writing():
            self._run("PRAGMA synchronous = NORMAL")  # of commits none is synced then; checkpoints are
            self._syncs_later, self._is_dirty = threading.get_ident(), False
        try:
            yield
        finally:
            with self._lock, self._writing():
                self._syncs_later = None
                self._run(f"PRAGMA synchronous = {_SYNCED}")
                if self._is_dirty:
                    self._sync(log)

    def _open_log(self) -> int | None:
        """Return a descriptor of the file with the commits, which stays; None: there is none, or no descriptor left."""
        if self._log is None and self._can_sync_later:
            with contextlib.suppress(OSError):
                self._log = os.open(f"{self.path}-wal", os.O_RDONLY)
        return self._log

    def _wrote(self) -> None:
        """Enter that something was written; sync it if another thread than the one that syncs later has written it."""
        self._is_dirty = True
        if self._transactions:
            return  # its end is what commits
        if self._log is not None and self._syncs_later not in (None, threading.get_ident()):
            self._sync(self._log)

    def _sync(self, log: int) -> None:
        try:
            os.fsync(log)
            self._is_dirty = False
        except OSError as error:
            raise storage_error(error, self.path) from error

    def rows(self, query: Executable, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """See Database."""
        with self._lock, self.reading():
            return self._asked(query, values)


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
