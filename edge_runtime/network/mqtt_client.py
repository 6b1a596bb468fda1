"""paho's client, made from an address and TLS files, that keeps what paho swallows: the exception of the transport."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MessageState, MQTTErrorCode, MQTTProtocolVersion

from edge_runtime.errors import ProtocolError, wall
from edge_runtime.network.broker_nodes import BrokerNodes
from edge_runtime.network.tls import OwnCertificate, tls_context

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from edge_runtime.network.address import BrokerAddress, TlsFiles

_LOG = logging.getLogger(__name__)
_MOST_IN_FLIGHT = 20
"""Messages that may wait for their acknowledgement at once: paho's own number."""
KEEP_ALIVE_TIMEOUT = 141
"""The reason that paho gives where a broker has said nothing for longer than the keep-alive."""


class Client(mqtt.Client):
    """A client whose connection says why it broke.

    paho reports a connection that was never made to nobody, and one that broke as "Unspecified error".

    Args:
        identity: the client id.
        nodes: the broker's addresses; each attempt to connect tries one after the other, from the present one on.
        protocol: paho's number of the version of MQTT.
        keep_session: whether the broker keeps messages while this client is away (MQTT 3.1.1 only).

    Attributes:
        is_one_by_one: whether the next connection sends each message only when the one before is acknowledged.
        transport_error: what the socket or ``ssl`` raised last; None: nothing since the connection was begun.
        own_certificate: this member's, which may be renewed while the client runs; None: it has none.
        draw_pause_s: returns the seconds to wait before the next attempt to connect; None: paho's own pauses.
        on_no_connection: called with the exception when a connection could not be made, in paho's thread.
    """

    is_one_by_one = False
    transport_error: BaseException | None = None
    own_certificate: OwnCertificate | None = None
    draw_pause_s: Callable[[], float] | None = None
    on_no_connection: Callable[[BaseException], None] | None = None

    def __init__(self, identity: str, nodes: BrokerNodes, protocol: MQTTProtocolVersion, *, keep_session: bool) -> None:
        clean = None if protocol == MQTTProtocolVersion.MQTTv5 else not keep_session
        super().__init__(CallbackAPIVersion.VERSION2, client_id=identity, protocol=protocol, clean_session=clean)
        self.nodes = nodes
        self.on_log = self._keep_logged_error

    def reconnect(self) -> MQTTErrorCode:
        """Connect, as paho does, to the first node that takes the connection; keep the exception if none does."""
        self.transport_error = None
        if self.own_certificate is not None:
            self.own_certificate.take_renewed()
        for _ in range(len(self.nodes) - 1):
            with contextlib.suppress(OSError):  # it is kept and reported
                return self._connect_to_node()
            self.nodes.go_on()
        return self._connect_to_node()

    def _connect_to_node(self) -> MQTTErrorCode:
        self._host, self._port = self.nodes.now.host, self.nodes.now.port  # paho's setters are for a new client
        try:
            result = super().reconnect()
        except OSError as error:
            self.transport_error = error
            if self.on_no_connection is not None:
                self.on_no_connection(error)
            raise
        self._send_at_once()
        return result

    def _send_at_once(self) -> None:
        """Let small packets go out at once (TCP_NODELAY): else each waits until the one before is acknowledged.

        The other side holds that acknowledgement back for up to 40 ms, in the hope of something to send along with it.
        """
        connection: Any = self.socket()
        if connection is not None:
            with contextlib.suppress(OSError):  # closed meanwhile, which the next read says
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _reconnect_wait(self) -> None:
        """Wait before the next attempt, as paho does, but for a pause that is drawn: paho's own have no jitter."""
        if self.draw_pause_s is not None:
            pause_s: Any = self.draw_pause_s()  # paho adds it to a time: it need not be whole
            self.reconnect_delay_set(pause_s, pause_s)
        super()._reconnect_wait()

    def _packet_handle(self) -> MQTTErrorCode:
        """Handle a packet, as paho does; one that paho cannot read ends the connection, and not paho's thread."""
        try:
            with wall(lambda cause: ProtocolError(f"the broker sent a packet that cannot be read: {cause}")):
                return super()._packet_handle()
        except ProtocolError as error:
            _LOG.warning("%s; the connection is made anew", error.what)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def local_address(self) -> str | None:
        """Return this machine's address on the connection to the broker; None: there is no connection."""
        connection: Any = self.socket()
        if connection is None:
            return None
        try:
            return str(connection.getsockname()[0])
        except OSError:  # closed by paho's thread meanwhile
            return None

    def head(self) -> mqtt.MQTTMessage | None:
        """Return the message that has waited longest for its acknowledgement; None: none waits.

        paho has no public view of its queue; this and the two methods below are all that looks into it.
        """
        with self._out_message_mutex:
            return next((message for message in self._out_messages.values() if message.qos > 0), None)

    def forget(self, number: int) -> None:
        """Take a message out of the queue; call it while there is no connection."""
        with self._out_message_mutex:
            self._out_messages.pop(number, None)

    def _messages_reconnect_reset_out(self) -> None:
        """Prepare the queue for a new connection, as paho does; one by one, it holds back all but the first."""
        super()._messages_reconnect_reset_out()
        with self._out_message_mutex:
            self._max_inflight_messages = 1 if self.is_one_by_one else _MOST_IN_FLIGHT
            if self.is_one_by_one:
                for message in list(self._out_messages.values())[1:]:
                    message.state = MessageState.MQTT_MS_QUEUED

    def _keep_logged_error(self, _client: Any, _data: Any, level: int, _text: str) -> None:  # noqa: ANN401
        """Keep the exception that paho handles while it logs it: its text alone would lose its class and number."""
        error = sys.exc_info()[1]
        if level == LogLevel.MQTT_LOG_ERR and isinstance(error, OSError):
            self.transport_error = error


def make_client(
    address: BrokerAddress,
    identity: str,
    tls: TlsFiles | None,
    *,
    protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
    keep_session: bool = True,
    rng: random.Random | None = None,
    wraps: Any = None,  # noqa: ANN401 see below
) -> Client:
    """Return a client that is ready to connect: with password, TLS and the files of this member.

    ``rng`` draws the order of a cluster's nodes; None: they are tried as they are written. ``wraps`` stands for the
    context of an address with TLS, in a process that has many members (covey swarm); None: one is made of its files.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    client = Client(identity, BrokerNodes(address, rng), protocol, keep_session=keep_session)
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    if wraps is not None:
        client.tls_set_context(wraps)
    elif tls is not None or address.tls:
        context = tls_context(tls)  # also for a plain broker: files that cannot be used are an error now
        if address.tls:
            client.tls_set_context(context)
            if tls is not None and tls.cert_file is not None:
                client.own_certificate = OwnCertificate(context, tls.cert_file, tls.key_file)
    return client
