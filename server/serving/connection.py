"""A server's connection to its broker: the embedded one, which it starts, or one that is there."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.network.mqtt import CONNECT_S, MqttTransport
from edge_runtime.protocol.topics import topic_for
from server.fleet.other_servers import ANSWER_S, Myself, OtherServers
from server.serving.broker_access import hands_reports_to_groups, require_size, server_access
from server.serving.report_group import ReportGroup
from server.serving.security import broker_files, signing_member
from server.web.broker import EMBEDDED, open_broker
from server.web.tls_front import tls_front

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.transport import Event, Transport
    from edge_runtime.signing.transport import SignedTransport
    from server.job.job import Job
    from server.serving.options import ServeOptions
    from server.serving.security import Security

_LOG = logging.getLogger(__name__)
_FURTHER_S = 10.0
"""Seconds that each further connection for reports may take: without it the server serves, too."""


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


Connect = Callable[[contextlib.ExitStack, int, "Security | None", "Callable[[], float] | None"], Connection]
"""Connects a server: gets a stack for clean-up, the HTTP port, what protects the fleet, if anything does, and the clock
that it shares with the machines that may be the server in turn (Ledger.shared_clock_s)."""


def connect_to_broker(
    options: ServeOptions, should_stop: Callable[[], bool], is_lost: Callable[[], bool] = lambda: False
) -> Connect:
    """Return a function that starts the embedded broker, or uses the given one, and connects to it; see open_host.

    Of a fleet with an authority, the embedded broker listens on this machine only; devices connect to the TLS side
    before it.

    Args:
        options: addresses.
        should_stop: asked while the embedded broker starts.
        is_lost: see OtherServers.
    """

    def connect(
        stack: contextlib.ExitStack,
        http_port: int,
        security: Security | None,
        shared_clock_s: Callable[[], float] | None,
    ) -> Connection:
        member = signing_member(options, security, shared_clock_s)
        tls, is_embedded = broker_files(options), _is_own(options)
        at = (options.listen, options.mqtt_port) if security is None else ("127.0.0.1", 0)
        address = stack.enter_context(open_broker(options.broker, *at, should_stop))
        mqtt_port = address.port
        if is_embedded and security is not None:
            front = tls_front(security.context, security.members, options.listen, options.mqtt_port, address.port)
            mqtt_port = stack.enter_context(front)
        if address.others and options.public_url is None:
            _LOG.warning(
                "several nodes of a broker, and no --public-url: each device asks the host of its own node for bundles"
            )
        if not is_embedded:
            for cause in server_access(address, options.fleet, tls).causes:
                _LOG.warning("%s", cause)
        server_id = secrets.token_hex(8)
        others = stack.enter_context(_only_server(address, options, tls, server_id, is_lost))
        transport = _connected(address, options, tls, f"covey-server-{options.fleet}-{server_id}")
        stack.callback(transport.close)
        _LOG.info("devices connect to port %d; bundles and adapters on port %d", mqtt_port, http_port)
        if member is not None and options.report_connections > 1:
            member.verifier.overtaken = frozenset({"report"})
        signed = None if member is None else member.around(transport)
        return Connection(
            signed or transport,
            mqtt_port if is_embedded else None,
            others.check,
            lambda job: require_size(address, options.fleet, tls, job),
            signed,
        )

    return connect


def _connected(
    address: BrokerAddress, options: ServeOptions, tls: TlsFiles | None, identity: str
) -> MqttTransport | ReportGroup:
    """Connect the server, over one connection or several that share the reports.

    No session is kept: with each connection the hello makes the devices answer, and send again what is open. Each start
    has a group of its own: a server that was killed, a standby, or another server takes no report away.
    """
    if options.report_connections == 1:
        return MqttTransport(address, identity, tls=tls, keep_session=False)
    begins_at = secrets.randbelow(len(address.nodes()))

    def connect(number: int, hand_to: Callable[[Event], None]) -> MqttTransport:
        return MqttTransport(
            address.begun_at(begins_at + number),
            f"{identity}-{number}" if number else identity,
            tls=tls,
            connect_timeout_s=_FURTHER_S if number else CONNECT_S,
            keep_session=False,
            hand_to=hand_to,
        )

    return ReportGroup(
        connect,
        options.report_connections,
        topic_for(options.fleet, "+", "report"),
        f"covey-{options.fleet}-{secrets.token_hex(8)}",
        lambda: hands_reports_to_groups(address, options.fleet, tls),
    )


def _is_own(options: ServeOptions) -> bool:
    return options.broker == EMBEDDED


@contextlib.contextmanager
def _only_server(
    address: BrokerAddress,
    options: ServeOptions,
    tls: TlsFiles | None,
    server_id: str,
    is_lost: Callable[[], bool],
) -> Iterator[OtherServers]:
    """See that no other server of the fleet is on the broker, and go on watching until the block ends.

    Raises:
        JobError: another one is there.
    """
    identity = f"covey-server-{options.fleet}-{server_id}-watch"
    transport = MqttTransport(address, identity, tls=tls, keep_session=False)
    watch = OtherServers(Myself(options.fleet, server_id, socket.gethostname()), transport, is_lost=is_lost)
    try:
        watch.begin(0 if _is_own(options) else ANSWER_S)  # nobody is on a broker that has just been made
        yield watch
    finally:
        watch.close()
