"""The ledger: what the server has promised and done. The server writes it before it acts.

A server that was killed at any point resumes from the ledger to the same adapter: a round's result is a function of
the reports in it. The writes are in job_writes.py, round_writes.py, device_writes.py, trust_writes.py and
audit_writes.py, the reads in queries.py, device_queries.py, trust_queries.py and audit_queries.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError
from server.storage.audit_writes import AuditWrites
from server.storage.device_writes import DeviceWrites
from server.storage.job_writes import JobWrites
from server.storage.ledger_address import address_beside
from server.storage.rollout_writes import RolloutWrites
from server.storage.round_writes import RoundWrites
from server.storage.sqlite_database import SqliteDatabase
from server.storage.trust_writes import TrustWrites

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from server.storage.database import Database


class Ledger(JobWrites, RoundWrites, DeviceWrites, TrustWrites, RolloutWrites, AuditWrites):
    """The ledger in one file, or in PostgreSQL where the file's folder says so. Safe to use from several threads.

    Args:
        path: the SQLite file; created if it does not exist. It stands for the ledger also where that is elsewhere; see
            ledger_address.py.
        read_only: for commands that only read; the ledger must exist.
        durable: whether a power cut loses nothing; simulations do without.
        waiting: how a server waits for a ledger in PostgreSQL, and holds it alone; None: nobody waits or holds it.

    Attributes:
        database: the open database, for the queries.

    Raises:
        StorageError: the ledger cannot be opened, is damaged, is of a newer Covey, or is missing or empty beside the
            jobs that it had.
        JobError: ``read_only``, and there is no ledger; or another server has it.
    """

    def __init__(
        self, path: Path, *, read_only: bool = False, durable: bool = True, waiting: Waiting | None = None
    ) -> None:
        super().__init__(_opened(path, read_only=read_only, durable=durable, waiting=waiting))

    def close(self) -> None:
        """Close it."""
        self.database.close()

    def now_s(self) -> float:
        """Return the time, in seconds since 1970, by a clock that all servers of the ledger share."""
        return self.database.now_s()

    def is_lost(self) -> bool:
        """Whether this server cannot write now, and another one may be about to take its place."""
        return self.database.is_lost

    def is_ours(self) -> bool:
        """Whether nobody else can have written since this server did."""
        return self.database.is_ours()

    @property
    def shared_clock_s(self) -> Callable[[], float] | None:
        """This clock, where servers on other machines may have the ledger in turn; None: it is a file of this one."""
        return self.now_s if self.database.is_shared else None

    def transaction(self) -> AbstractContextManager[None]:
        """Commit all writes of a ``with`` block together, or none of them.

        Raises:
            StorageError: the disk is full or damaged; nothing was written.
        """
        return self.database.transaction()

    def synced_at_the_end(self) -> AbstractContextManager[None]:
        """Let what this thread writes in a ``with`` block wait for the disk once, at its end; see Database.

        Raises:
            StorageError: it cannot be synced; a power cut may lose what the block has written.
        """
        return self.database.synced_at_the_end()


@dataclass(frozen=True)
class Waiting:
    """How a server takes a ledger in PostgreSQL for itself.

    Attributes:
        wait_s: seconds to wait for the database, and for another server that has the ledger; None: for ever.
        sleep: waits; gets seconds. May raise to end the waiting.
    """

    wait_s: float | None
    sleep: Callable[[float], object]


def _opened(path: Path, *, read_only: bool, durable: bool, waiting: Waiting | None) -> Database:
    address = address_beside(path)
    if address is not None:
        from server.storage.postgres_database import PostgresDatabase  # noqa: PLC0415 where there is one

        if waiting is None:
            return PostgresDatabase(address, read_only=read_only)
        return PostgresDatabase(
            address, read_only=read_only, exclusive=True, wait_s=waiting.wait_s, sleep=waiting.sleep
        )
    is_new = not path.exists()
    return SqliteDatabase(
        path, read_only=read_only, durable=durable, may_begin=lambda: _refuse_beside_jobs(path, is_new=is_new)
    )


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
