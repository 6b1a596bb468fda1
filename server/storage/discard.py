"""Deletes a job and everything on disk that only it needs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error
from server.storage import queries

if TYPE_CHECKING:
    from pathlib import Path

    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger


def job_folder(state_dir: Path, name: str) -> Path:
    """Return the folder of a job's result."""
    return state_dir / "jobs" / name


def fronts_folder(state_dir: Path, name: str) -> Path:
    """Return the folder in which a job with a frozen front keeps activations of its held-out rows while it runs."""
    return state_dir / "fronts" / name


def discard_job(ledger: Ledger, blobs: BlobStore, state_dir: Path, name: str) -> None:
    """Delete a job that is not at work: its entries, its adapters, logs and moments, and its result.

    The entries go last: a server that is killed in the middle can be asked again.

    Args:
        ledger: has the job.
        blobs: adapters, logs and moments of all jobs.
        state_dir: the server's state directory.
        name: name of the job.

    Raises:
        StorageError: a file cannot be deleted.
    """
    others = {sha256 for other in queries.job_names(ledger) if other != name for sha256 in _blobs_of(ledger, other)}
    for sha256 in _blobs_of(ledger, name) - others:
        blobs.remove(sha256)
    shutil.rmtree(fronts_folder(state_dir, name), ignore_errors=True)
    folder = job_folder(state_dir, name)
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    ledger.delete_job(name)


def _blobs_of(ledger: Ledger, name: str) -> set[str]:
    """Return the hashes of all that a job's rounds have left among the blobs."""
    return {
        sha256
        for closed in queries.closed_rounds(ledger, name)
        for sha256 in (closed.result_sha256, closed.log_sha256, closed.figures.moment_sha256)
        if sha256 is not None
    }
