"""Which blobs the ledger says are wanted: what an earlier server has left to remove is compared with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.storage import queries
from server.storage.adapters import KEPT_FILES

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def wanted_blobs(ledger: Ledger) -> set[str]:
    """Return the hashes of the adapters and moments that jobs keep, and of all logs of their rounds.

    Raises:
        StorageError: the ledger cannot be read.
    """
    wanted: set[str | None] = set()
    for name in queries.job_names(ledger):
        closed = queries.closed_rounds(ledger, name)
        wanted |= {done.log_sha256 for done in closed}
        for done in closed[-KEPT_FILES:]:
            wanted |= {done.result_sha256, done.figures.moment_sha256}
    return {sha256 for sha256 in wanted if sha256 is not None}


def wanted_deltas(ledger: Ledger) -> set[str]:
    """Return the hashes of the deltas that were taken in the rounds that are open.

    Raises:
        StorageError: the ledger cannot be read.
    """
    wanted: set[str] = set()
    for name in queries.job_names(ledger):
        opened = queries.open_attempt(ledger, name)
        if opened is not None:
            deltas = queries.taken_deltas(ledger, name, opened.index, opened.attempt)
            wanted |= {delta.sha256 for delta in deltas.values()}
    return wanted
