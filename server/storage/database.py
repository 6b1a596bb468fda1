"""The ledger's SQLite file: its schema, and transactions whose errors name what to do. Only this room uses it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import CoveyError, StorageError, cause_of, storage_error
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

SCHEMA_VERSION = 6
_SCHEMA = """
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, fleet TEXT NOT NULL, bundle_sha256 TEXT NOT NULL, config TEXT NOT NULL,
    state TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT (datetime('now')), finished_at TEXT,
    loss_start REAL, accuracy_start REAL, result_dir TEXT,
    priority INTEGER NOT NULL DEFAULT 0, after TEXT, bundle_path TEXT, reason TEXT);
CREATE TABLE device_tags (fleet TEXT, device TEXT, tag TEXT, PRIMARY KEY (fleet, device, tag));
CREATE TABLE audit (id INTEGER PRIMARY KEY, at TEXT DEFAULT (datetime('now')), actor TEXT, action TEXT, subject TEXT, detail TEXT);
CREATE TABLE rounds (
    job TEXT NOT NULL REFERENCES jobs(name), round INTEGER NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    plan TEXT NOT NULL, base_sha256 TEXT NOT NULL, base_mean_square REAL,
    opened_at TEXT NOT NULL DEFAULT (datetime('now')), closed_at TEXT, result_sha256 TEXT, log_sha256 TEXT,
    log_size_bytes INTEGER, terms INTEGER, mean_square REAL, figures TEXT,
    loss REAL, accuracy REAL, PRIMARY KEY (job, round, attempt));
CREATE TABLE offers (
    job TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL,
    detail TEXT, scalars BLOB, examples INTEGER, loss REAL, seconds REAL, front_passes INTEGER, back_passes INTEGER,
    front_seconds REAL, back_seconds REAL, level INTEGER, delta_sha256 TEXT, layers TEXT, personal_layers INTEGER,
    peak_rss_bytes INTEGER, bytes_up INTEGER NOT NULL DEFAULT 0, bytes_down INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, round, attempt, device), FOREIGN KEY (job, round, attempt) REFERENCES rounds);
CREATE TABLE devices (
    fleet TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, birth TEXT, adapter_sha256 TEXT,
    last_seen TEXT NOT NULL DEFAULT (datetime('now')), ineligible TEXT, reason TEXT, address TEXT, PRIMARY KEY (fleet, name));
CREATE TABLE choices (
    job TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, device TEXT NOT NULL, choice BLOB NOT NULL,
    PRIMARY KEY (job, round, attempt, device));
CREATE TABLE bandits (job TEXT PRIMARY KEY REFERENCES jobs(name), state BLOB NOT NULL);
CREATE TABLE profiles (
    id INTEGER PRIMARY KEY, fleet TEXT NOT NULL, device TEXT NOT NULL, payload_sha256 TEXT NOT NULL, profile BLOB,
    bundle_sha256 TEXT, remarks TEXT NOT NULL, received_at TEXT NOT NULL DEFAULT (datetime('now')));
CREATE INDEX profiles_of_devices ON profiles (fleet, device, id);
"""


_RESTORE = (
    "restore it from a backup, or save what is left (sqlite3 {path} .recover | sqlite3 recovered.sqlite) and put that "
    "in its place; a new job needs another --state-dir"
)
_TABLES = frozenset(re.findall(r"CREATE TABLE (\w+)", _SCHEMA))
_FULL = (sqlite3.SQLITE_FULL,)
_READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """One SQLite file with the ledger's schema. Safe to use from several threads.

    Whatever is wrong with the file or with what it holds becomes a StorageError that names the file.

    Args:
        path: the file; created with the schema if it does not exist.
        read_only: for commands that only read; the file must exist.
        durable: whether every commit is synced to disk, so that a power cut loses nothing.
        may_begin: called before the schema is written to a new or empty file; raises where that would be a mistake.

    Attributes:
        path: the file.

    Raises:
        StorageError: the file cannot be opened, is damaged, or has another schema version.
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
        with self.reading():
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            with self.reading():
                self._open(read_only=read_only, durable=durable, may_begin=may_begin)
        except BaseException:
            self._connection.close()
            raise

    def _open(self, *, read_only: bool, durable: bool, may_begin: Callable[[], None]) -> None:
        run = self._connection.execute
        self._connection.row_factory = sqlite3.Row
        run("PRAGMA temp_store = MEMORY")  # a query needs no file descriptor then
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0 and not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if read_only:
                raise StorageError(
                    f"the ledger {self.path} is empty ({self.path.stat().st_size} bytes)",
                    _RESTORE.format(path=self.path),
                )
            may_begin()
        elif version != SCHEMA_VERSION:
            raise StorageError(
                f"{self.path} has schema version {version}, this Covey knows {SCHEMA_VERSION}",
                "use the Covey that wrote it, or another --state-dir",
            )
        if not read_only:
            run("PRAGMA journal_mode = WAL")
            # With FULL, a power cut loses nothing that was acknowledged.
            run(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            run("PRAGMA foreign_keys = ON")
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        self._check(pages=not read_only)
        self._inode = self.path.stat().st_ino

    def _check(self, *, pages: bool) -> None:
        """Check that every table is there and, for a server that will write, every page: better now than in mid-job."""
        tables = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if missing := _TABLES - tables:
            raise self.damaged(f"it has no table {', '.join(sorted(missing))}")
        if pages:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
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
        except sqlite3.Error as error:
            raise self._failed(error, "read") from error
        except Exception as error:
            raise self.damaged(cause_of(error)) from error

    def _failed(self, error: sqlite3.Error, verb: str) -> StorageError:
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
        with self._lock:
            self._check_there()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                        self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._failed(error, "write") from error

    def write(self, statement: str, *values: object) -> None:
        """Execute one statement.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        with self._lock:
            self._check_there()
            try:
                self._connection.execute(statement, values)
            except sqlite3.Error as error:
                raise self._failed(error, "write") from error

    def write_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute one statement per row. For use within a transaction."""
        self._connection.executemany(statement, rows)

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return a query's rows, each as a dictionary by column.

        Raises:
            StorageError: the file is damaged or cannot be read.
        """
        with self._lock, self.reading():
            return [dict(row) for row in self._connection.execute(query, values)]
