"""The ledger: what the server has promised and done, in SQLite. The server writes it before it acts.

A server that was killed at any point resumes from the ledger to the same adapter: a round's result is a function of
the reports in it. This file has the writes, ``queries.py`` the reads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import StorageError
from server.errors import JobError
from server.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from edge_runtime.protocol.profile import Profile
    from server.storage.records import ClosedRound

LEDGER_FILE = "ledger.sqlite"
MAY_CHANGE = frozenset(
    {"devices", "cohort", "over_selection", "min_reports", "min_devices", "deadline_s", "accept_s", "max_attempts"}
)
"""Job fields that may differ when a job is resumed: they decide which devices report, not what a report means."""

PROFILES_KEPT = 20
"""Profiles kept per device: this many valid and this many rejected ones."""


class Ledger:
    """The ledger in one file. Safe to use from several threads.

    Args:
        path: the SQLite file; created if it does not exist.
        read_only: for commands that only read; the file must exist.
        durable: whether a power cut loses nothing; simulations do without.

    Attributes:
        database: the open file, for queries.py.

    Raises:
        StorageError: the file cannot be opened, is damaged, has another schema version, or is missing or empty beside
            the jobs that it had.
        JobError: ``read_only``, and there is no ledger.
    """

    def __init__(self, path: Path, *, read_only: bool = False, durable: bool = True) -> None:
        is_new = not path.exists()
        self.database = Database(
            path, read_only=read_only, durable=durable, may_begin=lambda: _refuse_beside_jobs(path, is_new=is_new)
        )

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Commit all writes of a ``with`` block together, or none of them.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        return self.database.transaction()

    # -- jobs ---------------------------------------------------------------------------------------------------

    def begin_job(
        self, name: str, fleet: str, bundle_sha256: str, config: dict[str, Any], bundle_path: str | None = None
    ) -> bool:
        """Enter a new job, or resume one that was interrupted.

        Returns:
            Whether the job was already in the ledger.

        Raises:
            JobError: the job is finished, or was begun with another bundle, fleet or configuration.
        """
        found = self.database.rows("SELECT * FROM jobs WHERE name = ?", name)
        if not found:
            self.database.write(
                "INSERT INTO jobs (name, fleet, bundle_sha256, bundle_path, config, state) VALUES (?, ?, ?, ?, ?, 'running')",
                name,
                fleet,
                bundle_sha256,
                bundle_path,
                json.dumps(config),
            )
            return False
        job = found[0]
        if job["state"] == "finished":
            raise JobError(
                f"job {name} is finished; its result is in {job['result_dir']}", "give the new job another name"
            )
        with self.database.reading():
            before = msgspec.json.decode(job["config"], type=dict[str, Any])
        changed = sorted(key for key in before.keys() | config.keys() if before.get(key) != config.get(key))
        if (job["fleet"], job["bundle_sha256"]) != (fleet, bundle_sha256) or not MAY_CHANGE.issuperset(changed):
            raise JobError(
                f"job {name} was begun with another bundle, fleet or configuration"
                + (f" ({', '.join(changed)})" if changed else ""),
                "use the same ones to resume it, or give the new job another name",
            )
        self.database.write("UPDATE jobs SET state = 'running', config = ? WHERE name = ?", json.dumps(config), name)
        return True

    def submit_job(self, name, fleet, bundle_sha256, bundle_path, config, *, priority=0, after=None):
        found = self.database.rows("SELECT state FROM jobs WHERE name = ?", name)
        if found:
            raise JobError(
                f"there is a job {name} already; it is {found[0]['state']}",
                "give the new job another name, or: covey job delete",
            )
        self.database.write(
            "INSERT INTO jobs (name, fleet, bundle_sha256, bundle_path, config, state, priority, after) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?)",
            name,
            fleet,
            bundle_sha256,
            bundle_path,
            json.dumps(config),
            priority,
            after,
        )

    def job_is(self, name, state, reason=None):
        self.database.write("UPDATE jobs SET state = ?, reason = ? WHERE name = ?", state, reason, name)

    def delete_job(self, name):
        with self.transaction():
            for table in ("choices", "bandits", "offers", "rounds"):
                self.database.write(f"DELETE FROM {table} WHERE job = ?", name)
            self.database.write("DELETE FROM jobs WHERE name = ?", name)

    def tag_device(self, fleet, device, tag):
        self.database.write("INSERT OR IGNORE INTO device_tags VALUES (?, ?, ?)", fleet, device, tag)

    def untag_device(self, fleet, device, tag):
        self.database.write("DELETE FROM device_tags WHERE fleet = ? AND device = ? AND tag = ?", fleet, device, tag)

    def forget_device(self, fleet, device):
        known = bool(self.database.rows("SELECT 1 FROM devices WHERE fleet = ? AND name = ?", fleet, device))
        with self.transaction():
            self.database.write("DELETE FROM devices WHERE fleet = ? AND name = ?", fleet, device)
            self.database.write("DELETE FROM device_tags WHERE fleet = ? AND device = ?", fleet, device)
            self.database.write("DELETE FROM profiles WHERE fleet = ? AND device = ?", fleet, device)
        return known

    def device_reason(self, fleet, device, reason):
        self.database.write("UPDATE devices SET reason = ? WHERE fleet = ? AND name = ?", reason, fleet, device)

    def audit(self, actor, action, subject, detail=""):
        self.database.write(
            "INSERT INTO audit (actor, action, subject, detail) VALUES (?, ?, ?, ?)", actor, action, subject, detail
        )

    def start_evaluated(self, job: str, loss: float, accuracy: float) -> None:
        """Enter held-out loss and accuracy of the adapter that a job starts from."""
        self.database.write("UPDATE jobs SET loss_start = ?, accuracy_start = ? WHERE name = ?", loss, accuracy, job)

    def end_job(self, name: str, state: str, result_dir: str | None) -> None:
        """Enter that a job is ``finished`` or ``failed``."""
        self.database.write(
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

        ``plan`` is a records.RoundPlan as JSON, ``devices`` gives each device's level, None for forward-only.
        """
        with self.transaction():
            self.database.write(
                "INSERT INTO rounds (job, round, attempt, state, plan, base_sha256, base_mean_square) "
                "VALUES (?, ?, ?, 'open', ?, ?, ?)",
                job,
                index,
                attempt,
                plan,
                base_sha256,
                mean_square,
            )
            self.database.write_many(
                "INSERT INTO offers (job, round, attempt, device, level, state) VALUES (?, ?, ?, ?, ?, 'offered')",
                [(job, index, attempt, device, level) for device, level in devices.items()],
            )

    def offer_is(self, job: str, index: int, attempt: int, device: str, state: str, detail: str | None = None) -> None:
        """Enter the new state of an offer."""
        self.database.write(
            "UPDATE offers SET state = ?, detail = ? WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            state,
            detail,
            *(job, index, attempt, device),
        )

    def take_report(self, job: str, index: int, attempt: int, device: str, values: dict[str, Any]) -> None:
        """Enter a report; the keys of ``values`` are columns of ``offers``."""
        columns = ", ".join(f"{column} = ?" for column in values)
        self.database.write(
            f"UPDATE offers SET state = 'reported', {columns} "  # noqa: S608 our own column names
            "WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            *values.values(),
            *(job, index, attempt, device),
        )

    def add_bytes(self, job: str, index: int, attempt: int, device: str, *, up: int = 0, down: int = 0) -> None:
        """Add bytes that travelled for an offer, from the device (``up``) and to it (``down``)."""
        self.database.write(
            "UPDATE offers SET bytes_up = bytes_up + ?, bytes_down = bytes_down + ? "
            "WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
            up,
            down,
            *(job, index, attempt, device),
        )

    def close_round(self, job: str, attempt: int, closed: ClosedRound) -> None:
        """Enter a round's result."""
        self.database.write(
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
        self.database.write(
            "UPDATE rounds SET state = 'abandoned', closed_at = datetime('now') "
            "WHERE job = ? AND round = ? AND attempt = ?",
            *(job, index, attempt),
        )

    def round_evaluated(self, job: str, index: int, loss: float, accuracy: float) -> None:
        """Enter held-out loss and accuracy of a round's adapter."""
        self.database.write(
            "UPDATE rounds SET loss = ?, accuracy = ? WHERE job = ? AND round = ? AND state = 'aggregated'",
            loss,
            accuracy,
            job,
            index,
        )

    # -- the bandit ---------------------------------------------------------------------------------------------

    def choices_made(self, job: str, index: int, attempt: int, choices: Mapping[str, bytes]) -> None:
        """Enter why each device got its arm; the values are choices.Choice as MessagePack."""
        with self.transaction():
            self.database.write_many(
                "INSERT INTO choices (job, round, attempt, device, choice) VALUES (?, ?, ?, ?, ?)",
                [(job, index, attempt, device, choice) for device, choice in choices.items()],
            )

    def bandit_is(self, job: str, state: bytes) -> None:
        """Enter what a job's bandit has learned: a BanditState as MessagePack."""
        self.database.write("INSERT OR REPLACE INTO bandits (job, state) VALUES (?, ?)", job, state)

    # -- devices ------------------------------------------------------------------------------------------------

    def device_state(self, fleet: str, name: str, state: str, ineligible: str | None = None) -> None:
        """Enter a device's state, and why its owner's rules keep it from training now; None: they do not."""
        self.database.write(
            "INSERT INTO devices (fleet, name, state, ineligible) VALUES (?, ?, ?, ?) ON CONFLICT (fleet, name) "
            "DO UPDATE SET state = excluded.state, ineligible = excluded.ineligible, last_seen = datetime('now')",
            fleet,
            name,
            state,
            ineligible,
        )

    def devices_silent(self, fleet: str) -> None:
        """Enter that no device of a fleet has answered the server's new hello yet."""
        self.database.write(
            "UPDATE devices SET state = 'silent' WHERE fleet = ? AND state IN ('online', 'busy')",
            fleet,
        )

    def device_born(self, fleet: str, name: str, birth: str) -> None:
        """Enter a device's birth message (JSON)."""
        self.database.write(
            "INSERT INTO devices (fleet, name, state, birth) VALUES (?, ?, 'online', ?) ON CONFLICT (fleet, name) "
            "DO UPDATE SET birth = excluded.birth, last_seen = datetime('now')",
            fleet,
            name,
            birth,
        )

    def device_proved(self, fleet: str, name: str, adapter_sha256: str) -> None:
        """Enter the hash of the adapter that a device has proved to have."""
        self.database.write(
            "UPDATE devices SET adapter_sha256 = ?, last_seen = datetime('now') WHERE fleet = ? AND name = ?",
            adapter_sha256,
            fleet,
            name,
        )

    # -- profiles -----------------------------------------------------------------------------------------------

    def profile_received(
        self, fleet: str, device: str, payload_sha256: str, profile: Profile | None, remarks: Sequence[str]
    ) -> bool:
        """Enter a device's profile, or that one was rejected (None), and delete its oldest ones (PROFILES_KEPT).

        Returns:
            Whether it is new: the broker sends a retained message again whenever the server starts.
        """
        kind = "profile IS NULL" if profile is None else "profile IS NOT NULL"
        with self.transaction():
            last = self.database.rows(
                "SELECT payload_sha256 FROM profiles WHERE fleet = ? AND device = ? ORDER BY id DESC LIMIT 1",
                fleet,
                device,
            )
            if last and last[0]["payload_sha256"] == payload_sha256:
                return False
            self.database.write(
                "INSERT INTO profiles (fleet, device, payload_sha256, profile, bundle_sha256, remarks) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                fleet,
                device,
                payload_sha256,
                None if profile is None else msgspec.json.encode(profile),
                None if profile is None else profile.bundle.sha256,
                json.dumps(list(remarks)),
            )
            self.database.write(
                f"DELETE FROM profiles WHERE fleet = ? AND device = ? AND {kind} AND id NOT IN "  # noqa: S608 ours
                f"(SELECT id FROM profiles WHERE fleet = ? AND device = ? AND {kind} ORDER BY id DESC LIMIT ?)",
                fleet,
                device,
                fleet,
                device,
                PROFILES_KEPT,
            )
        return True


def _refuse_beside_jobs(path: Path, *, is_new: bool) -> None:
    """Refuse to begin a ledger where there was one: its jobs would seem never to have been.

    Args:
        path: the ledger, which SQLite has made already.
        is_new: whether there was no file.

    Raises:
        StorageError: results of jobs lie beside it or, where the file was there and empty, adapters of a job.
    """
    folder = path.parent
    left = sorted(folder.glob("jobs/*/adapter")) + ([] if is_new else sorted(folder.glob("blobs/*")))
    if not left:
        return
    if is_new:
        path.unlink(missing_ok=True)
    raise StorageError(
        f"the ledger {path} {'is missing' if is_new else 'is empty'}, but {left[0].relative_to(folder)} lies beside it",
        f"restore it from a backup; or give a new job another --state-dir, or move everything in {folder} away",
    )
