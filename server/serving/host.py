"""Everything that a server process has open: lock, stores, HTTP side, broker, coordinator, supervisor and API."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.files.writable import check_writable
from edge_runtime.network.mqtt import MqttTransport
from server.api.app import API_VERSION, make_api
from server.api.listen import read_or_make_token, serve_local
from server.api.schema import ServerStatus
from server.client.address import socket_path
from server.compose import TICK_S, compose_coordinator, open_stores
from server.evaluation import InlineEvaluator, no_evaluation
from server.fleet.other_servers import ANSWER_S, Myself, OtherServers
from server.queue.operations import Operations
from server.queue.supervisor import Supervisor
from server.rollouts.rollouts import Rollouts
from server.rounds.services import Services
from server.serving.broker_access import require_size, server_access
from server.serving.joining import Ports, serve_joining
from server.serving.options import only_one
from server.serving.revocations import keep_revoked
from server.serving.security import broker_files, open_security, signing_member
from server.web.broker import EMBEDDED, open_broker
from server.web.http_app import make_app, serve_http
from server.web.members_only import members_only
from server.web.tls_front import tls_front

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.transport import Transport
    from edge_runtime.signing.transport import SignedTransport
    from server.compose import Stores
    from server.events import Event
    from server.job.job import Job
    from server.queue.supervisor import Prepared
    from server.rounds.coordinator import Coordinator
    from server.serving.options import ServeOptions
    from server.serving.security import Security
    from server.storage.records import JobRecord
    from server.trust.releases import ReleaseBook

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """A server's connection to its broker.

    Attributes:
        transport: the connection.
        mqtt_port: port of the embedded broker; None: the broker is another process.
        check: raises JobError where another server of the fleet is on the broker, to which this one gives way.
        require_size: raises NetworkError where the broker does not take the largest message of a job.
        signed: the connection, where messages are signed.
    """

    transport: Transport
    mqtt_port: int | None
    check: Callable[[], None] = lambda: None
    require_size: Callable[[Job], None] = lambda _job: None
    signed: SignedTransport | None = None


Connect = Callable[[contextlib.ExitStack, int, "Security | None"], Connection]
"""Connects a server: gets a stack for clean-up, the HTTP port, and what protects the fleet, if anything does."""


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
        found: dict[str, str | int] = {"fleet": options.fleet, "broker": options.broker, "http_port": self.http_port}
        if self.connection.mqtt_port is not None:
            found["mqtt_port"] = self.connection.mqtt_port
        if self.join_port is not None:
            found["join_port"] = self.join_port
        return {**found, "api": str(socket_path(options.state_dir))}


@contextlib.contextmanager
def locked_stores(options: ServeOptions) -> Iterator[Stores]:
    """Lock a state directory and open its stores until the block ends.

    Raises:
        JobError: another server uses it.
        StorageError: it cannot be written, or the ledger is damaged.
    """
    check_writable(options.state_dir, "--state-dir")
    with only_one(options.state_dir):
        stores = open_stores(options.state_dir)
        with contextlib.closing(stores.ledger):
            yield stores


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
        connect: connects once the HTTP side listens; gets a stack for clean-up, the HTTP port, and what protects the
            fleet.
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
        connection = connect(stack, port, security)
        ports = Ports(connection.mqtt_port, port)
        join_port = stack.enter_context(serve_joining(options, security, stores.ledger, ports))
        services = _services(connection, stores, _blob_url(options, security, port))
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
        _open_api(stack, host)
        yield host


def _services(connection: Connection, stores: Stores, blob_url: str) -> Services:
    return Services(
        transport=connection.transport,
        uploads=stores.uploads,
        evaluator=InlineEvaluator(no_evaluation),  # every job brings its own
        clock=time.monotonic,
        blob_url=blob_url,
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


def _open_api(stack: contextlib.ExitStack, host: Host) -> None:
    """Serve the API on the state directory's socket and, where it is asked for, on a TCP port."""
    options, began_at = host.options, time.monotonic()
    operations = Operations(host.supervisor, host.stores.ledger, host.stores.blobs, options.state_dir, host.rollouts)

    def status() -> ServerStatus:
        roster, signed = host.coordinator.roster, host.connection.signed
        return ServerStatus(
            api_version=API_VERSION,
            covey_version=__version__,
            fleet=options.fleet,
            broker=options.broker,
            mqtt_port=host.connection.mqtt_port,
            http_port=host.http_port,
            epoch=roster.epoch,
            devices_here=len(roster.online()),
            jobs_at_work=list(host.coordinator.runs),
            uptime_s=time.monotonic() - began_at,
            has_authority=host.join_port is not None,
            join_port=host.join_port,
            refused={} if signed is None else refusals(signed),
        )

    stack.enter_context(serve_local(make_api(operations, status, "local", None), options.state_dir))
    if options.api_port is not None:
        token = read_or_make_token(options.state_dir)
        app = make_api(operations, status, "token", token)
        port = stack.enter_context(serve_http(app, options.api_listen, options.api_port))
        _LOG.info("API on %s:%d; its token is in %s", options.api_listen, port, options.state_dir / "api-token")


def _open_rollouts(stores: Stores, services: Services, coordinator: Coordinator, security: Security | None) -> Rollouts:
    rollouts = Rollouts(
        coordinator.roster.fleet,
        stores.ledger,
        stores.blobs,
        services.transport,
        services.blob_url,
        coordinator.devices,
        time.time,
        (lambda _kind, _name, _sha256: None) if security is None else security.releases.take,
    )
    coordinator.take_released = rollouts.take
    return rollouts


def _watch_signatures(connection: Connection, coordinator: Coordinator) -> None:
    if connection.signed is not None:
        connection.signed.take_outdated = coordinator.take_outdated
        coordinator.forget_speaker = connection.signed.forget


def refusals(signed: SignedTransport) -> dict[str, int]:
    """Return how many messages were refused since the start, by ``DEVICE: REASON``."""
    return {f"{device}: {reason.value}": count for (device, reason), count in signed.refused.items()}


def connect_to_broker(options: ServeOptions, should_stop: Callable[[], bool]) -> Connect:
    """Return a function that starts the embedded broker, or uses the given one, and connects to it; see open_host.

    Of a fleet with an authority, the embedded broker listens on this machine only; devices connect to the TLS side
    before it.
    """

    def connect(stack: contextlib.ExitStack, http_port: int, security: Security | None) -> Connection:
        member, tls, is_embedded = signing_member(options, security), broker_files(options), _is_own(options)
        at = (options.listen, options.mqtt_port) if security is None else ("127.0.0.1", 0)
        address = stack.enter_context(open_broker(options.broker, *at, should_stop))
        mqtt_port = address.port
        if is_embedded and security is not None:
            front = tls_front(security.context, security.members, options.listen, options.mqtt_port, address.port)
            mqtt_port = stack.enter_context(front)
        if not is_embedded:
            for cause in server_access(address, options.fleet, tls).causes:
                _LOG.warning("%s", cause)
        server_id = secrets.token_hex(8)
        others = stack.enter_context(_only_server(address, options, tls, server_id))
        # No session is kept: with each connection the hello makes the devices answer, and send again what is open.
        identity = f"covey-server-{options.fleet}-{server_id}"
        transport = MqttTransport(address, identity, tls=tls, keep_session=False)
        stack.callback(transport.close)
        _LOG.info("devices connect to port %d; bundles and adapters on port %d", mqtt_port, http_port)
        signed = None if member is None else member.around(transport)
        return Connection(
            signed or transport,
            mqtt_port if is_embedded else None,
            others.check,
            lambda job: require_size(address, options.fleet, tls, job),
            signed,
        )

    return connect


def _is_own(options: ServeOptions) -> bool:
    return options.broker == EMBEDDED


@contextlib.contextmanager
def _only_server(
    address: BrokerAddress, options: ServeOptions, tls: TlsFiles | None, server_id: str
) -> Iterator[OtherServers]:
    """See that no other server of the fleet is on the broker, and go on watching until the block ends.

    Raises:
        JobError: another one is there.
    """
    identity = f"covey-server-{options.fleet}-{server_id}-watch"
    transport = MqttTransport(address, identity, tls=tls, keep_session=False)
    watch = OtherServers(Myself(options.fleet, server_id, socket.gethostname()), transport)
    try:
        watch.begin(0 if _is_own(options) else ANSWER_S)  # nobody is on a broker that has just been made
        yield watch
    finally:
        watch.close()
