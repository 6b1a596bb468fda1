"""The ledger: what the server has promised and done. The server writes it before it acts.

A server that was killed at any point resumes from the ledger to the same adapter: a round's result is a function of
the reports in it. The writes are in job_writes.py, round_writes.py, device_writes.py, trust_writes.py and
audit_writes.py, the reads in queries.py, device_queries.py, trust_queries.py and audit_queries.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError
from server.storage.audit_writes import AuditWrites
from server.storage.database import Database
from server.storage.device_writes import DeviceWrites
from server.storage.job_writes import JobWrites
from server.storage.rollout_writes import RolloutWrites
from server.storage.round_writes import RoundWrites
from server.storage.trust_writes import TrustWrites

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

LEDGER_FILE = "ledger.sqlite"


class Ledger(JobWrites, RoundWrites, DeviceWrites, TrustWrites, RolloutWrites, AuditWrites):
    """The ledger in one file. Safe to use from several threads.

    Args:
        path: the SQLite file; created if it does not exist.
        read_only: for commands that only read; the file must exist.
        durable: whether a power cut loses nothing; simulations do without.

    Attributes:
        database: the open file, for the queries.

    Raises:
        StorageError: the file cannot be opened, is damaged, is of a newer Covey, or is missing or empty beside the
            jobs that it had.
        JobError: ``read_only``, and there is no ledger.
    """

    def __init__(self, path: Path, *, read_only: bool = False, durable: bool = True) -> None:
        is_new = not path.exists()
        super().__init__(
            Database(
                path, read_only=read_only, durable=durable, may_begin=lambda: _refuse_beside_jobs(path, is_new=is_new)
            )
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
