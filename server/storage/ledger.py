"""The ledger: what the server has promised and done, in SQLite, written before it acts.

Killed at any point, the server resumes from it to the same adapter: a round's result is a function of the reports
that are in here.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.protocol.profile import Profile
from server.errors import JobError
from server.storage.records import ClosedRound, RoundFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LEDGER_FILE = "ledger.sqlite"
MAY_CHANGE = frozenset({"cohort", "over_selection", "min_reports", "min_devices", "deadline_s", "max_attempts"})
"""Fields of a job that may be other ones when it is resumed: they decide who reports, not what a report means."""

SCHEMA_VERSION = 5
PROFILES_KEPT = 20
"""Of each device, so many valid profiles and as many refused ones."""
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


class Ledger:
    """The ledger in one file. Safe to use from several threads.

    Args:
        path: the SQLite file.
        read_only: for commands that only look; the file must be there.
        durable: a power cut loses nothing; simulations do without.

    Raises:
        StorageError: it cannot be opened, or is of another version.
        JobError: ``read_only`` and there is no ledger.
    """

    def __init__(self, path: Path, *, read_only: bool = False, durable: bool = True) -> None:
        if read_only and not path.exists():
            raise JobError(f"there is no ledger at {path}", "run a job first, or give its --state-dir")
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                # With FULL a power cut loses nothing that was acknowledged.
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
                self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not read_only:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
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
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside.

        Raises:
            StorageError: disk full or damaged; nothing was written.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StorageError(f"cannot write the ledger: {error}", "free some space and start again") from error

    def _write(self, statement: str, *values: object) -> None:
        with self._lock:
            try:
                self._db.execute(statement, values)
            except sqlite3.OperationalError as error:
                raise StorageError(f"cannot write the ledger: {error}", "free some space and start again") from error

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows of a query as dictionaries."""
        with self._lock:
            return [dict(row) for row in self._db.execute(query, values)]

    # -- jobs ---------------------------------------------------------------------------------------------------

    def begin_job(self, name: str, fleet: str, bundle_sha256: str, config: dict[str, Any]) -> bool:
        """Enter a job, or take up one that was interrupted.

        Returns:
            Whether the job was there before.

        Raises:
            JobError: it is finished, or was begun with another bundle or configuration.
        """
        found = self.rows("SELECT * FROM jobs WHERE name = ?", name)
        if not found:
            self._write(
                "INSERT INTO jobs (name, fleet, bundle_sha256, config, state) VALUES (?, ?, ?, ?, 'running')",
                name,
                fleet,
                bundle_sha256,
                json.dumps(config),
            )
            return False
        job = found[0]
        if job["state"] == "finished":
            raise JobError(
                f"job {name} is finished; its result is in {job['result_dir']}", "give the new job another name"
            )
        before = json.loads(job["config"])
        changed = sorted(key for key in before.keys() | config.keys() if before.get(key) != config.get(key))
        if (job["fleet"], job["bundle_sha256"]) != (fleet, bundle_sha256) or not MAY_CHANGE.issuperset(changed):
            raise JobError(
                f"job {name} was begun with another bundle, fleet or configuration"
                + (f" ({', '.join(changed)})" if changed else ""),
                "use the same ones to resume it, or give the new job another name",
            )
        self._write("UPDATE jobs SET state = 'running', config = ? WHERE name = ?", json.dumps(config), name)
        return True

    def start_evaluated(self, job: str, loss: float, accuracy: float) -> None:
        """Enter what the first adapter of a job was worth."""
        self._write("UPDATE jobs SET loss_start = ?, accuracy_start = ? WHERE name = ?", loss, accuracy, job)

    def end_job(self, name: str, state: str, result_dir: str | None) -> None:
        """Enter that a job is ``finished`` or ``failed``."""
        self._write(
            "UPDATE jobs SET state = ?, result_dir = ?, finished_at = datetime('now') WHERE name = ?",
            state,
            result_dir,
            name,
        )

    # -- rounds -------------------------------------------------------------------------------------------------

    def open_round(
        self,
        job: str,
        index: int,
        attempt: int,
        plan: str,
        base_sha256: str,
        mean_square: float | None,
        devices: Mapping[str, int | None],
    ) -> None:
        """Enter an attempt at a round and its offers.

        ``plan`` is planning.RoundPlan as JSON, ``devices`` gives each device's level, None for forward-only.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO rounds (job, round, attempt, state, plan, base_sha256, base_mean_square) "
                "VALUES (?, ?, ?, 'open', ?, ?, ?)",
                (job, index, attempt, plan, base_sha256, mean_square),
            )
            self._db.executemany(
                "INSERT INTO offers (job, round, attempt, device, level, state) VALUES (?, ?, ?, ?, ?, 'offered')",
                [(job, index, attempt, device, level) for device, level in devices.items()],
            )

    def offer_is(self, job: str, index: int, attempt: int, device: str, state: str, detail: str | None = None) -> None:
        """Enter a change of an offer."""
        self._write(
            "UPDATE offers SET state = ?, detail = ? WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            state,
            detail,
            job,
            index,
            attempt,
            device,
        )

    def take_report(self, job: str, index: int, attempt: int, device: str, values: dict[str, Any]) -> None:
        """Enter a report; ``values`` are columns of ``offers``."""
        columns = ", ".join(f"{column} = ?" for column in values)
        self._write(
            f"UPDATE offers SET state = 'reported', {columns} "  # noqa: S608 our own column names
            "WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            *values.values(),
            job,
            index,
            attempt,
            device,
        )

    def add_bytes(self, job: str, index: int, attempt: int, device: str, *, up: int = 0, down: int = 0) -> None:
        """Count what travelled for an offer."""
        self._write(
            "UPDATE offers SET bytes_up = bytes_up + ?, bytes_down = bytes_down + ? "
            "WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            up,
            down,
            job,
            index,
            attempt,
            device,
        )

    def close_round(self, job: str, attempt: int, closed: ClosedRound) -> None:
        """Enter a round's result."""
        self._write(
            "UPDATE rounds SET state = 'aggregated', closed_at = datetime('now'), result_sha256 = ?, log_sha256 = ?, "
            "log_size_bytes = ?, terms = ?, mean_square = ?, figures = ? WHERE job = ? AND round = ? AND attempt = ?",
            closed.result_sha256,
            closed.log_sha256,
            closed.log_size_bytes,
            closed.terms,
            closed.mean_square,
            msgspec.json.encode(closed.figures).decode(),
            job,
            closed.index,
            attempt,
        )

    def abandon_round(self, job: str, index: int, attempt: int) -> None:
        """Enter that an attempt had too few reports."""
        self._write(
            "UPDATE rounds SET state = 'abandoned', closed_at = datetime('now') "
            "WHERE job = ? AND round = ? AND attempt = ?",
            job,
            index,
            attempt,
        )

    def round_evaluated(self, job: str, index: int, loss: float, accuracy: float) -> None:
        """Enter what a round's adapter is worth."""
        self._write(
            "UPDATE rounds SET loss = ?, accuracy = ? WHERE job = ? AND round = ? AND state = 'aggregated'",
            loss,
            accuracy,
            job,
            index,
        )

    def closed_rounds(self, job: str) -> list[ClosedRound]:
        """Return a job's aggregated rounds, in order."""
        return [
            ClosedRound(
                row["round"],
                row["base_sha256"],
                row["result_sha256"],
                row["log_sha256"],
                row["log_size_bytes"],
                row["terms"],
                row["mean_square"],
                msgspec.json.decode(row["figures"], type=RoundFigures),
            )
            for row in self.rows("SELECT * FROM rounds WHERE job = ? AND state = 'aggregated' ORDER BY round", job)
        ]

    # -- the bandit ---------------------------------------------------------------------------------------------

    def choices_made(self, job: str, index: int, attempt: int, choices: Mapping[str, bytes]) -> None:
        """Enter why each device got its arm; values are choices.Choice as MessagePack."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO choices (job, round, attempt, device, choice) VALUES (?, ?, ?, ?, ?)",
                [(job, index, attempt, device, choice) for device, choice in choices.items()],
            )

    def bandit_is(self, job: str, state: bytes) -> None:
        """Enter what a job's bandit has learned: bandit_state.BanditState as MessagePack."""
        self._write("INSERT OR REPLACE INTO bandits (job, state) VALUES (?, ?)", job, state)

    # -- devices ------------------------------------------------------------------------------------------------

    def device_state(self, fleet: str, name: str, state: str, ineligible: str | None = None) -> None:
        """Enter a device's state, and why it takes no work now; None: it does."""
        self._write(
            "INSERT INTO devices (fleet, name, state, ineligible) VALUES (?, ?, ?, ?) ON CONFLICT (fleet, name) "
            "DO UPDATE SET state = excluded.state, ineligible = excluded.ineligible, last_seen = datetime('now')",
            fleet,
            name,
            state,
            ineligible,
        )

    def device_born(self, fleet: str, name: str, birth: str) -> None:
        """Enter a device's birth message (JSON)."""
        self._write(
            "INSERT INTO devices (fleet, name, state, birth) VALUES (?, ?, 'online', ?) ON CONFLICT (fleet, name) "
            "DO UPDATE SET birth = excluded.birth, last_seen = datetime('now')",
            fleet,
            name,
            birth,
        )

    def device_proved(self, fleet: str, name: str, adapter_sha256: str) -> None:
        """Enter the hash of the adapter that a device has shown to have."""
        self._write(
            "UPDATE devices SET adapter_sha256 = ?, last_seen = datetime('now') WHERE fleet = ? AND name = ?",
            adapter_sha256,
            fleet,
            name,
        )

    # -- profiles -----------------------------------------------------------------------------------------------

    def profile_received(
        self, fleet: str, device: str, payload_sha256: str, profile: Profile | None, remarks: Sequence[str]
    ) -> bool:
        """Enter a device's profile, or that one was refused (None); the oldest are forgotten (PROFILES_KEPT).

        Returns:
            Whether it is news: a retained message comes again with every start of the server.
        """
        kind = "profile IS NULL" if profile is None else "profile IS NOT NULL"
        with self.transaction():
            last = self.rows(
                "SELECT payload_sha256 FROM profiles WHERE fleet = ? AND device = ? ORDER BY id DESC LIMIT 1",
                fleet,
                device,
            )
            if last and last[0]["payload_sha256"] == payload_sha256:
                return False
            self._db.execute(
                "INSERT INTO profiles (fleet, device, payload_sha256, profile, bundle_sha256, remarks) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    fleet,
                    device,
                    payload_sha256,
                    None if profile is None else msgspec.json.encode(profile),
                    None if profile is None else profile.bundle.sha256,
                    json.dumps(list(remarks)),
                ),
            )
            self._db.execute(
                f"DELETE FROM profiles WHERE fleet = ? AND device = ? AND {kind} AND id NOT IN "  # noqa: S608 ours
                f"(SELECT id FROM profiles WHERE fleet = ? AND device = ? AND {kind} ORDER BY id DESC LIMIT ?)",
                (fleet, device, fleet, device, PROFILES_KEPT),
            )
        return True

    def newest_profile(self, fleet: str, device: str, bundle_sha256: str | None = None) -> Profile | None:
        """Return the last valid profile of a device, of a bundle where one is named; None: there is none."""
        rows = self.rows(
            "SELECT profile FROM profiles WHERE fleet = ? AND device = ? AND profile IS NOT NULL "
            "AND bundle_sha256 = coalesce(?, bundle_sha256) ORDER BY id DESC LIMIT 1",
            fleet,
            device,
            bundle_sha256,
        )
        return msgspec.json.decode(rows[0]["profile"], type=Profile) if rows else None
