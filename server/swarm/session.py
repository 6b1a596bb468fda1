"""One device of a swarm: a paho client that the event loop drives, with the shipped messages, signer and verifier."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTErrorCode

from edge_runtime.errors import ConfigError, ProtocolError
from edge_runtime.network.address import TlsFiles
from edge_runtime.network.mqtt_client import KEEP_ALIVE_TIMEOUT, make_client
from edge_runtime.network.reconnect_pauses import LEAST_PAUSE_S, ReconnectPauses
from edge_runtime.protocol.messages import decode_message, decode_plan, encode_message
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import ReportAck
from edge_runtime.protocol.topics import Kind, hello_topic, topic_for
from server.job.selector import SWARM
from server.swarm import login
from server.swarm.answers import INSTANT, birth
from server.swarm.plan_answers import PlanAnswers
from server.swarm.shared_tls import MemberTls

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    from edge_runtime.network.cause import Cause, Place
    from edge_runtime.protocol.messages import AnyMessage
    from server.swarm.protection import Protection, Role
    from server.swarm.surroundings import Surroundings

KEEP_ALIVE_S = 60
_ANSWERS_S = 30.0
"""Seconds that a broker may take to answer a login."""
_RETAINED: tuple[Kind, ...] = ("birth", "state")
"""What the broker retains of a device."""


class Session:
    """One device. Everything but making the connection happens in the event loop's thread.

    Args:
        name: the device's name.
        tls: its files for TLS; None: it has none.
        protection: seals and opens its messages.
        boot_id: names this start.
        around: what it shares with the others.
    """

    def __init__(
        self, name: str, tls: TlsFiles | None, protection: Protection, boot_id: str, around: Surroundings
    ) -> None:
        self.name, self._protection, self._boot_id, self._around = name, protection, boot_id, around
        self._counts = around.counts
        self._tls = tls
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        rng = random.Random(f"{name} {boot_id}")  # noqa: S311 no secret
        self._pauses = ReconnectPauses(rng)
        self._connections, self._is_up, self._is_leaving = 0, False, False
        self._is_answered, self._is_unheard = False, False  # whether this login has its answer, or was left without one
        self._epoch: str | None = None
        self._plans = PlanAnswers(name, around, self)
        self._goodbyes: set[int] = set()  # numbers of the last messages
        self._identity = f"covey-{around.fleet}-{name}"
        wraps = None if around.tls is None else MemberTls(around.tls, tls or TlsFiles())
        client = self.client = make_client(
            around.address, self._identity, tls, keep_session=False, rng=rng, wraps=wraps
        )
        will, topic = DeviceState(state="lost", boot_id=boot_id), self._topic("state")
        client.will_set(topic, self._sealed(topic, will, role="will"), qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message, client.on_publish = self._on_message, self._on_publish

    # -- coming and going ---------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Connect when the entrance lets it."""
        if not self._is_leaving:
            self._around.entrance.ask(self._connect)

    def leave(self) -> None:
        """Say goodbye, take what the broker retains of this device from it, and disconnect for good."""
        self._is_leaving = True
        if self._is_up:
            if self._epoch is not None:
                self.state("offline")
            self._goodbyes = {self.client.publish(self._topic(kind), b"", 1, retain=True).mid for kind in _RETAINED}

    def _on_publish(self, client: Any, _data: Any, number: int, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        """Disconnect once the broker has the goodbyes: it may not read what is left when a connection is closed."""
        if number in self._goodbyes:
            self._goodbyes.discard(number)
            if not self._goodbyes:
                client.disconnect()

    def end(self) -> None:
        """Count what is open; nothing comes any more."""
        self._plans.end()

    def _connect(self) -> None:
        """Make the connection, in a thread: TCP's and TLS's handshakes wait for the broker."""
        if self._is_leaving:
            return
        self._is_answered = self._is_unheard = False
        address = self._around.address
        try:
            self.client.connect(address.host, address.port, keepalive=KEEP_ALIVE_S)
        except (OSError, ConfigError) as error:
            self._loop.call_soon_threadsafe(self._not_connected, error)
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, _ANSWERS_S, self._give_up, self.client.socket())

    def _give_up(self, connection: object) -> None:
        """Leave a broker that has taken the connection and not answered the login on it."""
        if self._uses(connection) and not self._is_answered:
            self._is_unheard = True
            self.client.disconnect()

    @property
    def _place(self) -> Place:
        return self.client.nodes.now.place(self._tls)

    def _not_connected(self, error: BaseException | None) -> None:
        """Enter that the login has failed without the broker's answer, and try again after a while."""
        self._failed(login.unanswered(error, self._place, self._around.connected))

    def _failed(self, cause: Cause) -> None:
        self._counts.refused_logins[cause.kind] += 1
        self._around.causes[cause.kind] = cause
        if not self._is_leaving:
            self._loop.call_later(self._pauses.draw(), self.enter)

    # -- paho's socket in the event loop ------------------------------------------------------------------------

    def _in_loop(self, call: Callable[..., object], *values: object) -> None:
        """Call in the event loop's thread: paho may report something in the one in which a connection is made."""
        if threading.get_ident() == self._thread:
            call(*values)
        else:
            self._loop.call_soon_threadsafe(call, *values)

    def _on_socket_open(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._in_loop(self._watch, connection)

    def _watch(self, connection: Any) -> None:  # noqa: ANN401
        if self._uses(connection):
            self._loop.add_reader(connection, self._read, connection)

    def _uses(self, connection: object) -> bool:
        return self.client.socket() is connection

    def _read(self, connection: Any) -> None:  # noqa: ANN401
        while self.client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pending = getattr(connection, "pending", None)
            if pending is None or not pending():  # what TLS has read already wakes no selector
                return

    def _on_socket_close(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        if (number := connection.fileno()) >= 0:  # it is closed next, and a later connection may get its number
            self._in_loop(self._unwatch, number)

    def _unwatch(self, number: int) -> None:
        self._loop.remove_reader(number)
        self._loop.remove_writer(number)

    def _on_register_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._in_loop(self._watch_writing, connection)

    def _watch_writing(self, connection: Any) -> None:  # noqa: ANN401
        if self._uses(connection):
            self._loop.add_writer(connection, self.client.loop_write)

    def _on_unregister_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        if (number := connection.fileno()) >= 0:
            self._in_loop(self._loop.remove_writer, number)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        is_silent = reason.value == KEEP_ALIVE_TIMEOUT or self._is_unheard
        self._in_loop(self._ended, login.SILENCE if is_silent else self.client.transport_error)

    def _ended(self, error: BaseException | None) -> None:
        """Take in that the connection has ended; unless the session leaves, it tries the next node after a while."""
        if self._is_up:
            self._is_up = False
            self._around.went()
            if not self._is_leaving:
                self._counts.lost_connections += 1
                self._pauses.lost(LEAST_PAUSE_S)
                self._loop.call_later(self._pauses.draw(), self.enter)
        elif not self._is_answered:
            self._not_connected(error)
        self.client.nodes.go_on()

    # -- the device ---------------------------------------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._in_loop(self._logged_in, reason)

    def _logged_in(self, reason: Any) -> None:  # noqa: ANN401
        """Take in the broker's answer to the login."""
        self._is_answered = True
        if reason.is_failure:
            user = self._around.address.username
            connected = self._around.connected
            self._failed(login.answered(reason.value, str(reason), self._place, user, self._identity, connected))
            return
        self._is_up = True
        self._around.came()
        self._counts.devices_connected += self._connections == 0
        self._connections += 1
        topics = (hello_topic(self._around.fleet), self._topic("plan"), self._topic("report/ack"))
        self.client.subscribe([(topic, 1) for topic in topics])
        if self._is_leaving:
            self.leave()
        elif self._epoch is not None:
            self._announce()

    def _topic(self, kind: Kind) -> str:
        return topic_for(self._around.fleet, self.name, kind)

    def _sealed(self, topic: str, message: AnyMessage, role: Role = "message") -> bytes:
        return self._protection.seal(topic, encode_message(message), role)

    def _announce(self) -> None:
        assert self._epoch is not None  # noqa: S101 set by the hello
        training = self._around.training
        own = birth(
            self.name,
            self._epoch,
            boot_id=self._boot_id,
            connection=self._connections,
            tags=[SWARM, *self._around.tags],
            trains=INSTANT if training is None else training.trains,
            adapter_sha256=self._plans.adapter_sha256,
        )
        self.send("birth", own)
        self.state(self._plans.doing)
        self._plans.again()

    # -- what the answers to plans need: see plan_answers.Speaks -------------------------------------------------

    @property
    def broker_host(self) -> str:
        """The broker that it is connected to, or that it tries next."""
        return self.client.nodes.now.host

    def later(self, call: Callable[[], None]) -> None:
        """Have something called in the event loop's thread; callable from any thread."""
        self._loop.call_soon_threadsafe(self._unless_leaving, call)

    def _unless_leaving(self, call: Callable[[], None]) -> None:
        if not self._is_leaving:  # what it says after its goodbye, the broker would retain
            call()

    def state(self, state: Literal["online", "busy", "offline"]) -> None:
        """Say what the device is doing."""
        self.send("state", DeviceState(state=state, boot_id=self._boot_id, epoch=self._epoch))

    def send(self, kind: Kind, message: AnyMessage) -> None:
        """Publish a message."""
        topic = self._topic(kind)
        payload = self._sealed(topic, message)
        self._counts.messages_up += 1
        self._counts.bytes_up += len(payload)
        self.client.publish(topic, payload, qos=1, retain=kind in _RETAINED)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:  # noqa: ANN401
        if not message.payload:
            return  # a server asks its broker whether it may publish (network/access.py)
        counts = self._counts
        counts.messages_down += 1
        counts.bytes_down += len(message.payload)
        opened = self._protection.open(message.topic, message.payload)
        if opened is None:
            counts.refused += 1
            return
        kind, body = opened
        try:
            if kind == "hello":
                self._take_hello(decode_message(body, Hello))
            elif kind == "report/ack":
                self._plans.take_answer(decode_message(body, ReportAck))
            elif not self._is_leaving:
                self._plans.take_plan(decode_plan(body))
        except ProtocolError:
            counts.refused += 1

    def _take_hello(self, hello: Hello) -> None:
        if not self._is_leaving:
            self._epoch = hello.epoch
            self._counts.hellos += 1
            self._announce()
