"""The ledger's SQLite file: its schema, and transactions whose errors name what to do. Only this room uses it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import StorageError, storage_error
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

SCHEMA_VERSION = 5
_SCHEMA = """
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, fleet TEXT NOT NULL, bundle_sha256 TEXT NOT NULL, config TEXT NOT NULL,
    state TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT (datetime('now')), finished_at TEXT,
    loss_start REAL, accuracy_start REAL, result_dir TEXT);
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
    last_seen TEXT NOT NULL DEFAULT (datetime('now')), ineligible TEXT, PRIMARY KEY (fleet, name));
CREATE TABLE choices (
    job TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, device TEXT NOT NULL, choice BLOB NOT NULL,
    PRIMARY KEY (job, round, attempt, device));
CREATE TABLE bandits (job TEXT PRIMARY KEY REFERENCES jobs(name), state BLOB NOT NULL);
CREATE TABLE profiles (
    id INTEGER PRIMARY KEY, fleet TEXT NOT NULL, device TEXT NOT NULL, payload_sha256 TEXT NOT NULL, profile BLOB,
    bundle_sha256 TEXT, remarks TEXT NOT NULL, received_at TEXT NOT NULL DEFAULT (datetime('now')));
CREATE INDEX profiles_of_devices ON profiles (fleet, device, id);
"""


class Database:
    """One SQLite file with the ledger's schema. Safe to use from several threads.

    Args:
        path: the file; created with the schema if it does not exist.
        read_only: for commands that only read; the file must exist.
        durable: whether every commit is synced to disk, so that a power cut loses nothing.

    Raises:
        StorageError: the file cannot be opened, or has another schema version.
        JobError: ``read_only``, and the file does not exist.
    """

    def __init__(self, path: Path, *, read_only: bool, durable: bool) -> None:
        if read_only and not path.exists():
            raise JobError(f"there is no ledger at {path}", "run a job first, or give its --state-dir")
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            if not read_only:
                self._connection.execute("PRAGMA journal_mode = WAL")
                # With FULL, a power cut loses nothing that was acknowledged.
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
                self._connection.execute("PRAGMA foreign_keys = ON")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not read_only:
                self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise StorageError(
                    f"{path} has schema version {version}, this Covey knows {SCHEMA_VERSION}",
                    "use the Covey that wrote it, or another --state-dir",
                )
        except OSError as error:
            raise storage_error(error, path) from error
        except sqlite3.Error as error:
            raise StorageError(f"cannot open the ledger {path}: {error}", "check the disk, or its owner") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block together, or none of them.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StorageError(f"cannot write the ledger: {error}", "free some space and start again") from error

    def write(self, statement: str, *values: object) -> None:
        """Execute one statement.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        with self._lock:
            try:
                self._connection.execute(statement, values)
            except sqlite3.OperationalError as error:
                raise StorageError(f"cannot write the ledger: {error}", "free some space and start again") from error

    def write_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute one statement per row. For use within a transaction."""
        self._connection.executemany(statement, rows)

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return a query's rows, each as a dictionary by column."""
        with self._lock:
            return [dict(row) for row in self._connection.execute(query, values)]
