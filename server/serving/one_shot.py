"""Runs one job from its files to its finished adapter, and ends: ``covey run``, the demo, and fleets in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from server.errors import JobError
from server.ray_work.workers import open_workers
from server.serving.connection import connect_to_broker
from server.serving.host import open_host
from server.serving.loaded_job import load, prepare, release
from server.serving.stores import locked_stores
from server.storage import queries
from server.views.summary import job_summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from server.compose import Stores
    from server.events import Event, Observer
    from server.job.fitted import FittedJob
    from server.queue.supervisor import Prepared, Supervisor
    from server.serving.connection import Connect
    from server.serving.host import Host
    from server.serving.options import ServeOptions
    from server.storage.records import JobRecord


def run_job(
    fitted: FittedJob,
    bundle: Bundle,
    options: ServeOptions,
    observe: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Run a job to its end.

    Returns:
        The job's summary (summary.job_summary); None: it was stopped and can be resumed.

    Raises:
        CoveyError: see errors.py; closed rounds stay in the ledger, and the job can be resumed.
    """
    return coordinate(fitted, bundle, options, connect_to_broker(options, should_stop), observe, should_stop)


def coordinate(
    fitted: FittedJob,
    bundle: Bundle,
    options: ServeOptions,
    connect: Connect,
    observe: Observer,
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Run a job over any transport; see run_job.

    Args:
        fitted: the job.
        bundle: its bundle.
        options: folders and addresses; those of the broker are not used.
        connect: connects once the HTTP side listens; see host.Connect.
        observe: receives events.
        should_stop: asked between messages.
    """
    job = fitted.job
    with locked_stores(options, should_stop) as stores, open_workers(options.ray, should_stop) as workers:
        loaded = load(fitted, bundle, options.threads)
        stores.ledger.begin_job(
            job.name, options.fleet, fitted.bundle_sha256, msgspec.to_builtins(job), str(bundle.path.resolve())
        )

        def prepared(host: Host, _record: JobRecord) -> Prepared:
            host.connection.require_size(loaded.fitted.job)
            release(loaded, host.releases)
            return prepare(loaded, host.coordinator, stores, host.services, options.state_dir, should_stop, workers)

        def observed(_job: str | None, event: Event) -> None:
            observe(event)

        with open_host(options, stores, connect, prepared, observed, should_stop, only=job.name) as host:
            while not should_stop():
                host.turn()
                if _is_finished(host.supervisor, stores, job.name):
                    return job_summary(stores.ledger, job.name)
    return None


def _is_finished(supervisor: Supervisor, stores: Stores, name: str) -> bool:
    """Whether the job is finished; raises what it failed with, or that the operator has stopped or deleted it."""
    if supervisor.is_at_work(name):
        return False
    error = supervisor.errors.get(name)
    if error is not None:
        raise error
    record = queries.find_job(stores.ledger, name)
    if record is not None and record.state in ("queued", "running", "paused", "finished"):
        return record.state == "finished"
    raise JobError(
        f"job {name} was {'deleted' if record is None else record.state} by the operator",
        "covey run takes up a stopped job where it was",
    )
