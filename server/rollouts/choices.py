"""What a server has that could be rolled out: adapters of its jobs, their bundles, and what was rolled out before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import MANIFEST_FILE
from server.rollouts.described import rollout_of
from server.storage import queries
from server.storage.rollout_queries import rollouts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.protocol.side_messages import ReleaseKind
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger

_MOST_JOBS = 100
"""Jobs that are looked at, the newest."""


@dataclass(frozen=True)
class Choice:
    """Something that can be rolled out.

    Attributes:
        kind: what it is.
        source: the name of a job, or an absolute path on the server's machine.
        bundle: absolute path of an adapter's bundle; None: the job's, or it is no adapter.
        label: what it is, in words.
    """

    kind: ReleaseKind
    source: str
    bundle: str | None
    label: str


def choices_of(ledger: Ledger, blobs: BlobStore, fleet: str) -> list[Choice]:
    """Return what can be rolled out, the newest first within each kind; of what is there twice, the first.

    Args:
        ledger: has the jobs and the rollouts.
        blobs: has the jobs' adapters.
        fleet: name of the fleet.
    """
    found: dict[tuple[str, str], Choice] = {}
    for choice in (*_of_jobs(ledger, blobs, fleet), *_of_rollouts(ledger, fleet)):
        found.setdefault((choice.kind, choice.source), choice)
    return sorted(found.values(), key=lambda choice: choice.kind)


def _of_jobs(ledger: Ledger, blobs: BlobStore, fleet: str) -> Iterator[Choice]:
    for job in queries.jobs_of(ledger, fleet)[: -_MOST_JOBS - 1 : -1]:
        closed = queries.closed_rounds(ledger, job.name)
        if closed and blobs.has(closed[-1].result_sha256):
            label = f"adapter of job {job.name}, which is {job.state}, after round {closed[-1].index + 1}"
            yield Choice("adapter", job.name, None, label)
        if job.bundle_path is not None and (Path(job.bundle_path) / MANIFEST_FILE).is_file():
            yield Choice("bundle", job.bundle_path, None, f"bundle {job.bundle_path}")


def _of_rollouts(ledger: Ledger, fleet: str) -> Iterator[Choice]:
    for record in rollouts_of(ledger, fleet)[::-1]:
        rollout, path = rollout_of(record), Path(record.source)
        there = path / MANIFEST_FILE if rollout.kind == "bundle" else path
        if there.is_file():
            name = record.source if rollout.kind == "bundle" else path.name
            label = f"{rollout.kind} {name}, of rollout {record.id}"
            yield Choice(rollout.kind, record.source, rollout.bundle_path, label)
