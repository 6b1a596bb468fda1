"""The ledger's writes about jobs: submitted, begun, ended, deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import delete, func, insert, select, update

from server.errors import JobError
from server.job.job import Job
from server.storage.tables import BANDITS, CHOICES, JOBS, OFFERS, ROUNDS
from server.storage.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Mapping

MAY_CHANGE = frozenset(
    {"devices", "cohort", "over_selection", "min_reports", "min_devices", "deadline_s", "accept_s", "max_attempts"}
)
"""Job fields that may differ when a job is resumed: they decide which devices report, not what a report means."""


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with every field that this Covey knows: an earlier one has entered fewer.

    One that this Covey cannot read is returned as it is.
    """
    try:
        read = msgspec.convert(config, Job)
    except msgspec.ValidationError:
        return config
    found: dict[str, Any] = msgspec.to_builtins(read)
    return found


class JobWrites(Writes):
    """See the file's first line."""

    def check_job_is_new(self, name: str) -> None:
        """Check that there is no job of a name.

        Raises:
            JobError: there is one.
        """
        found = self.database.rows(select(JOBS.c.state).where(JOBS.c.name == name))
        if found:
            raise JobError(
                f"there is a job {name} already; it is {found[0]['state']}",
                f"give the new job another name; or, to run that one: covey job resume {name}",
            )

    def submit_job(
        self,
        name: str,
        fleet: str,
        bundle_sha256: str,
        bundle_path: str,
        config: Mapping[str, Any],
        *,
        priority: int = 0,
        after: str | None = None,
    ) -> None:
        """Enter a job in the queue.

        Args:
            name: name of the job.
            fleet: name of its fleet.
            bundle_sha256: hash of its bundle.
            bundle_path: where the bundle is on the server's machine.
            config: job.toml as JSON values.
            priority: a larger one comes first.
            after: the job that must be finished first; None: none.

        Raises:
            JobError: there is a job of this name.
        """
        with self.database.transaction():
            self.check_job_is_new(name)
            self._insert_job(
                name=name,
                fleet=fleet,
                bundle_sha256=bundle_sha256,
                bundle_path=bundle_path,
                config=json.dumps(config),
                state="queued",
                priority=priority,
                after=after,
            )

    def _insert_job(self, **values: object) -> None:
        found = self.database.rows(select(func.max(JOBS.c.sequence).label("last")))
        with self.database.reading():
            last = msgspec.convert(found[0]["last"], int | None)
        self.database.write(
            insert(JOBS), {**values, "sequence": (last or 0) + 1, "created_at": self.database.now_text()}
        )

    def begin_job(
        self, name: str, fleet: str, bundle_sha256: str, config: Mapping[str, Any], bundle_path: str | None = None
    ) -> bool:
        """Enter that a job runs: a new one, one from the queue, or one that was interrupted, stopped or has failed.

        Args:
            name: name of the job.
            fleet: name of its fleet.
            bundle_sha256: hash of its bundle.
            config: job.toml as JSON values.
            bundle_path: where the bundle is on the server's machine; None: as it was.

        Returns:
            Whether the job was already in the ledger.

        Raises:
            JobError: the job is finished, or was begun with another bundle, fleet or configuration.
        """
        found = self.database.rows(select(JOBS).where(JOBS.c.name == name))
        if not found:
            with self.database.transaction():
                self._insert_job(
                    name=name,
                    fleet=fleet,
                    bundle_sha256=bundle_sha256,
                    bundle_path=bundle_path,
                    config=json.dumps(config),
                    state="running",
                )
            return False
        job = found[0]
        if job["state"] == "finished":
            raise JobError(
                f"job {name} is finished; its result is in {job['result_dir']}", "give the new job another name"
            )
        with self.database.reading():
            before = msgspec.json.decode(job["config"], type=dict[str, Any])
        then, now = _with_defaults(before), _with_defaults(config)
        changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
        if (job["fleet"], job["bundle_sha256"]) != (fleet, bundle_sha256) or not MAY_CHANGE.issuperset(changed):
            raise JobError(
                f"job {name} was begun with another bundle, fleet or configuration"
                + (f" ({', '.join(changed)})" if changed else ""),
                "use the same ones to resume it, or give the new job another name",
            )
        path = job["bundle_path"] if bundle_path is None else bundle_path
        values = {"state": "running", "reason": None, "config": json.dumps(config), "bundle_path": path}
        self.database.write(update(JOBS).where(JOBS.c.name == name).values(**values))
        return True

    def job_is(self, name: str, state: str, reason: str | None = None) -> None:
        """Enter a job's state, and why it waits or has failed."""
        self.database.write(update(JOBS).where(JOBS.c.name == name).values(state=state, reason=reason))

    def start_evaluated(self, job: str, loss: float, accuracy: float) -> None:
        """Enter held-out loss and accuracy of the adapter that a job starts from."""
        self.database.write(update(JOBS).where(JOBS.c.name == job).values(loss_start=loss, accuracy_start=accuracy))

    def end_job(self, name: str, state: str, result_dir: str | None) -> None:
        """Enter that a job is ``finished`` or ``failed``."""
        ended = update(JOBS).where(JOBS.c.name == name)
        self.database.write(ended.values(state=state, result_dir=result_dir, finished_at=self.database.now_text()))

    def delete_job(self, name: str) -> None:
        """Delete a job with its rounds, offers, choices and what its bandit has learned."""
        with self.database.transaction():
            for table in (CHOICES, BANDITS, OFFERS, ROUNDS):
                self.database.write(delete(table).where(table.c.job == name))
            self.database.write(delete(JOBS).where(JOBS.c.name == name))
