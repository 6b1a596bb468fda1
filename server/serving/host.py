"""Everything that a server process has open: lock, stores, HTTP side, broker, coordinator, supervisor and API."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.network.address import without_password
from server.access.gate import Access
from server.access.operators import OneToken, OperatorFile
from server.api.app import API_VERSION, make_api
from server.api.app import PREFIX as API_PREFIX
from server.api.listen import read_or_make_token, serve_local
from server.api.schema import ServerStatus
from server.client.address import TOKEN_FILE, socket_path
from server.compose import TICK_S, compose_coordinator
from server.dashboard.app import make_dashboard
from server.evaluation import InlineEvaluator, no_evaluation
from server.metrics.running import Running
from server.metrics.text import metrics_of
from server.queue.operations import Operations
from server.queue.supervisor import Supervisor
from server.rollouts.rollouts import Rollouts
from server.rounds.held import HeldTransport
from server.rounds.services import Services
from server.serving.joining import Ports, serve_joining
from server.serving.revocations import keep_revoked
from server.serving.security import open_security
from server.web.http_app import make_app, serve_http
from server.web.members_only import members_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.signing.transport import SignedTransport
    from server.access.operators import Operators
    from server.compose import Stores
    from server.events import Event
    from server.queue.supervisor import Prepared
    from server.rounds.coordinator import Coordinator
    from server.serving.connection import Connect, Connection
    from server.serving.options import ServeOptions
    from server.serving.security import Security
    from server.storage.records import JobRecord
    from server.trust.releases import ReleaseBook

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Host:
    """What a running server has open.

    Attributes:
        options: its folders and addresses.
        stores: what it keeps on disk.
        coordinator: reads the devices' messages.
        services: what the coordinator uses.
        supervisor: runs the jobs.
        rollouts: what is rolled out.
        http_port: port of blobs and adapters.
        join_port: port where devices join; None: the fleet has no authority.
        connection: to its broker.
        refresh: has the broker's files say who is revoked now.
        releases: signs what the server has taken; None: the fleet has no authority.
    """

    options: ServeOptions
    stores: Stores
    coordinator: Coordinator
    services: Services
    supervisor: Supervisor
    rollouts: Rollouts
    http_port: int
    join_port: int | None
    connection: Connection
    refresh: Callable[[], None]
    releases: ReleaseBook | None

    def turn(self) -> None:
        """Give the supervisor one turn.

        Raises:
            JobError: another server of the fleet is on the broker, to which this one gives way.
            StorageError: the ledger or a blob cannot be written.
        """
        self.connection.check()
        self.refresh()
        self.supervisor.turn(TICK_S)
        self.rollouts.turn()

    def described(self) -> dict[str, str | int]:
        """Return where devices and commands find the server."""
        options = self.options
        broker = without_password(options.broker)
        found: dict[str, str | int] = {"fleet": options.fleet, "broker": broker, "http_port": self.http_port}
        if self.connection.mqtt_port is not None:
            found["mqtt_port"] = self.connection.mqtt_port
        if self.join_port is not None:
            found["join_port"] = self.join_port
        return {**found, "api": str(socket_path(options.state_dir))}


@contextlib.contextmanager
def open_host(
    options: ServeOptions,
    stores: Stores,
    connect: Connect,
    prepare: Callable[[Host, JobRecord], Prepared],
    observe: Callable[[str | None, Event], None],
    should_stop: Callable[[], bool],
    only: str | None = None,
) -> Iterator[Host]:
    """Open a server's connections until the block ends; the caller gives its supervisor one turn after the other.

    Args:
        options: folders and addresses; those of the broker are ``connect``'s.
        stores: what it keeps on disk.
        connect: connects once the HTTP side listens; see connection.Connect.
        prepare: reads a job's files, in a thread of its own.
        observe: receives events with the job that they are of; None: the fleet's.
        should_stop: asked while something is waited for.
        only: the only job that is run; None: all of the ledger.

    Raises:
        ConfigError, StorageError: see open_security.
        NetworkError: a port is in use, or there is no broker.
    """
    with contextlib.ExitStack() as stack:
        security = open_security(options, stores.ledger)
        refresh = keep_revoked(options, security, stores.ledger)
        port = stack.enter_context(_serve_blobs(options, stores, security))
        connection = connect(stack, port, security, stores.ledger.shared_clock_s)
        ports = Ports(connection.mqtt_port, port)
        join_port = stack.enter_context(serve_joining(options, security, stores.ledger, ports))
        services = _services(connection, stores, _blob_url(options, security, port), options.blob_mirror)
        coordinator = compose_coordinator(
            options.fleet, stores.ledger, services, lambda event: observe(None, event), should_stop
        )
        coordinator.roster.has_identities = security is not None
        _watch_signatures(connection, coordinator)
        supervisor = Supervisor(
            coordinator, stores.ledger, lambda job: prepare(host, job), services.clock, observe, should_stop, only
        )
        host = Host(
            options,
            stores,
            coordinator,
            services,
            supervisor,
            _open_rollouts(stores, services, coordinator, security),
            port,
            join_port,
            connection,
            refresh,
            None if security is None else security.releases,
        )
        stack.callback(supervisor.close)
        _open_api(stack, host, security)
        yield host


def _services(connection: Connection, stores: Stores, blob_url: str, blob_mirror: str | None) -> Services:
    transport = HeldTransport(connection.transport)
    return Services(
        transport=transport,
        uploads=stores.uploads,
        evaluator=InlineEvaluator(no_evaluation),  # every job brings its own
        clock=time.monotonic,
        blob_url=blob_url,
        blob_mirror=blob_mirror,
        together=lambda: transport.holding(stores.ledger.synced_at_the_end),
    )


def _blob_url(options: ServeOptions, security: Security | None, port: int) -> str:
    own_url = f"{'http' if security is None else 'https'}://:{port}"
    return f"{(options.public_url or own_url).rstrip('/')}/blobs"


def _serve_blobs(
    options: ServeOptions, stores: Stores, security: Security | None
) -> contextlib.AbstractContextManager[int]:
    app = make_app(stores.blobs, stores.uploads, None if security is None else security.releases)
    if security is None:
        return serve_http(app, options.listen, options.http_port)
    guarded = members_only(app, security.members.admits)
    return serve_http(guarded, options.listen, options.http_port, tls=security.context)


def _open_api(stack: contextlib.ExitStack, host: Host, security: Security | None) -> None:
    """Serve the API on the state directory's socket and, where it is asked for, on a TCP port."""
    options, began_at = host.options, time.monotonic()
    operations = Operations(host.supervisor, host.stores.ledger, host.stores.blobs, options.state_dir, host.rollouts)

    def refused() -> dict[str, int]:
        return {} if host.connection.signed is None else refusals(host.connection.signed)

    def status() -> ServerStatus:
        roster = host.coordinator.roster
        return ServerStatus(
            api_version=API_VERSION,
            covey_version=__version__,
            fleet=options.fleet,
            broker=without_password(options.broker),
            mqtt_port=host.connection.mqtt_port,
            http_port=host.http_port,
            epoch=roster.epoch,
            devices_here=len(roster.online()),
            jobs_at_work=list(host.coordinator.runs),
            uptime_s=time.monotonic() - began_at,
            has_authority=host.join_port is not None,
            authority_sha256=None if security is None else security.trust.authority.sha256.hex(),
            join_port=host.join_port,
            refused=refused(),
        )

    metrics = metrics_of(host.stores.ledger, lambda: running_of(host, began_at))
    pages = make_dashboard(operations, API_PREFIX, refused)
    local = Access(None, time.monotonic, options.api_url)
    stack.enter_context(serve_local(make_api(operations, status, metrics, local, pages), options.state_dir))
    if options.api_port is not None:
        operators, place = _operators_of(options)
        access = Access(operators, time.monotonic, options.api_url, options.operator_proxy)
        app = make_api(operations, status, metrics, access, pages)
        port = stack.enter_context(serve_http(app, options.api_listen, options.api_port))
        _LOG.info("API on %s:%d; its tokens are in %s", options.api_listen, port, place)


def _operators_of(options: ServeOptions) -> tuple[Operators, Path]:
    """Return who may use the API over TCP, and the file of their tokens."""
    if options.operators is not None:
        return OperatorFile(options.operators), options.operators
    return OneToken(read_or_make_token(options.state_dir)), options.state_dir / TOKEN_FILE


def running_of(host: Host, began_at: float) -> Running:
    """Return what metrics say of a server's process; ``began_at``: seconds of time.monotonic at its start."""
    roster, signed = host.coordinator.roster, host.connection.signed
    refused = {} if signed is None else signed.refused
    return Running(
        fleet=host.options.fleet,
        covey_version=__version__,
        started_at_s=time.time() - (time.monotonic() - began_at),
        is_connected=roster.epoch is not None,
        devices_here=len(roster.online()),
        jobs_at_work=len(host.coordinator.runs),
        refused={(device, reason.value): count for (device, reason), count in list(refused.items())},
        state_dir=host.options.state_dir,
    )


def _open_rollouts(stores: Stores, services: Services, coordinator: Coordinator, security: Security | None) -> Rollouts:
    rollouts = Rollouts(
        coordinator.roster.fleet,
        stores.ledger,
        stores.blobs,
        services.transport,
        services.blob_url,
        coordinator.devices,
        stores.ledger.now_s,
        (lambda _kind, _name, _sha256: None) if security is None else security.releases.take,
    )
    rollouts.blob_mirror = services.blob_mirror
    coordinator.take_released = rollouts.take
    return rollouts


def _watch_signatures(connection: Connection, coordinator: Coordinator) -> None:
    if connection.signed is not None:
        connection.signed.take_outdated = coordinator.take_outdated
        coordinator.forget_speaker = connection.signed.forget


def refusals(signed: SignedTransport) -> dict[str, int]:
    """Return how many messages were refused since the start, by ``DEVICE: REASON``."""
    return {f"{device}: {reason.value}": count for (device, reason), count in signed.refused.items()}
