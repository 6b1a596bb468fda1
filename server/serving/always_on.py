"""A fleet's server that stays: it runs the jobs that are submitted, until it is told to stop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from server.errors import JobError
from server.ray_work.workers import open_workers
from server.serving.connection import connect_to_broker
from server.serving.host import open_host
from server.serving.loaded_job import load_submitted, prepare, release
from server.serving.stores import locked_stores

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from server.events import Event
    from server.queue.supervisor import Prepared
    from server.serving.host import Host
    from server.serving.options import ServeOptions
    from server.storage.records import JobRecord

_LOG = logging.getLogger(__name__)


def serve(
    options: ServeOptions,
    observe: Callable[[str | None, Event], None],
    should_stop: Callable[[], bool],
    is_ready: Callable[[Host], None] = lambda _host: None,
) -> None:
    """Serve a fleet until told to stop; jobs that are at work then are resumed by the next server.

    Args:
        options: folders and addresses.
        observe: receives events with the job that they are of; None: the fleet's.
        should_stop: asked between messages.
        is_ready: called once devices and commands can connect.

    Raises:
        JobError: another server uses the state directory.
        NetworkError: a port is in use, or there is no broker.
        StorageError: the state directory or the ledger cannot be written.
    """
    with locked_stores(options, should_stop) as stores, open_workers(options.ray, should_stop) as workers:

        def prepared(host: Host, record: JobRecord) -> Prepared:
            loaded = load_submitted(record, options.threads)
            host.connection.require_size(loaded.fitted.job)
            release(loaded, host.releases)
            return prepare(loaded, host.coordinator, stores, host.services, options.state_dir, should_stop, workers)

        connect = connect_to_broker(options, should_stop, stores.ledger.is_lost)
        with open_host(options, stores, connect, prepared, observe, should_stop) as host:
            is_ready(host)
            while not should_stop():
                host.turn()
    _LOG.info("stopped; jobs that were at work go on with the next covey serve")


def serve_or_wait(
    options: ServeOptions,
    observe: Callable[[str | None, Event], None],
    stop: threading.Event,
    is_ready: Callable[[Host], None],
) -> bool:
    """Serve a fleet as serve does. A standby that cannot begin gives the ledger back, and may try again.

    It may have got the lock of a server that has lost its database and lives: that one has the ports still, and says
    on the broker that it is there.

    Args:
        options: see serve.
        observe: see serve.
        stop: set where the server is to end.
        is_ready: see serve.

    Returns:
        Whether it has ended; False: this standby could not begin.

    Raises:
        CoveyError: see serve; of a standby, only after it had begun.
    """
    has_begun = False

    def begun(host: Host) -> None:
        nonlocal has_begun
        has_begun = True
        is_ready(host)

    try:
        serve(options, observe, stop.is_set, begun)
    except (JobError, NetworkError) as error:
        if has_begun or not options.standby or stop.is_set():
            raise
        _LOG.warning("this standby cannot begin, and waits again: %s", error)
        return False
    return True
