"""One device of a swarm: a paho client that the event loop drives, with the shipped messages, signer and verifier."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTErrorCode

from edge_runtime.errors import ConfigError, ProtocolError
from edge_runtime.network.mqtt_client import make_client
from edge_runtime.network.reconnect_pauses import LEAST_PAUSE_S, ReconnectPauses
from edge_runtime.protocol.messages import decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused, ReportAck, Synced
from edge_runtime.protocol.topics import Kind, hello_topic, topic_for
from server.job.selector import SWARM
from server.swarm import login
from server.swarm.answers import birth, drawn_scalars, instant_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.cause import Cause
    from edge_runtime.protocol.messages import AnyMessage
    from edge_runtime.protocol.plans import Plan
    from edge_runtime.protocol.reports import RoundReport
    from server.swarm.counts import Counts
    from server.swarm.entrance import Entrance
    from server.swarm.protection import Protection, Role

KEEP_ALIVE_S = 60
_RETAINED: tuple[Kind, ...] = ("birth", "state")
"""What the broker retains of a device."""


@dataclass
class Surroundings:
    """What the sessions of a process share.

    Attributes:
        address: the broker.
        fleet: the fleet's name.
        tags: what jobs can name the sessions by, beside the tag of every swarm.
        counts: what they have seen; added to.
        entrance: through which they connect.
        on_plan: called with the index of a round when its plan arrives.
        connected: sessions that are connected.
        causes: why logins failed, the last cause of each kind.
        is_empty: set while no session is connected.
    """

    address: BrokerAddress
    fleet: str
    tags: Sequence[str]
    counts: Counts
    entrance: Entrance
    on_plan: Callable[[int], None] = lambda _round: None
    connected: int = 0
    causes: dict[str, Cause] = field(default_factory=dict)
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Nobody is connected yet."""
        self.is_empty.set()

    def came(self) -> None:
        """Count a session that is connected."""
        self.connected += 1
        self.counts.connects += 1
        self.is_empty.clear()

    def went(self) -> None:
        """Count a session that is connected no more."""
        self.connected -= 1
        self.counts.disconnects += 1
        if self.connected == 0:
            self.is_empty.set()


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
        self._place = around.address.place(tls)
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._pauses = ReconnectPauses(random.Random(f"{name} {boot_id}"))  # noqa: S311 no secret
        self._connections, self._is_up, self._is_answered, self._is_leaving = 0, False, False, False
        self._epoch: str | None = None
        self._asked: tuple[str, int, int] | None = None  # job, round and attempt of the last plan
        self._asked_at = 0.0
        self._waiting: RoundReport | None = None  # a report without its answer: sent again, as devices do
        self._proved: str | None = None
        self._goodbyes: set[int] = set()  # numbers of the last messages
        self._identity = f"covey-{around.fleet}-{name}"
        client = self.client = make_client(around.address, self._identity, tls, keep_session=False)
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
                self._state("offline")
            self._goodbyes = {self.client.publish(self._topic(kind), b"", 1, retain=True).mid for kind in _RETAINED}

    def _on_publish(self, client: Any, _data: Any, number: int, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        """Disconnect once the broker has the goodbyes: it may not read what is left when a connection is closed."""
        if number in self._goodbyes:
            self._goodbyes.discard(number)
            if not self._goodbyes:
                client.disconnect()

    def end(self) -> None:
        """Count what is open; nothing comes any more."""
        if self._waiting is not None:
            self._counts.lost_reports += 1

    def _connect(self) -> None:
        """Make the connection, in a thread: TCP's and TLS's handshakes wait for the broker."""
        if self._is_leaving:
            return
        self._is_answered = False
        address = self._around.address
        try:
            self.client.connect(address.host, address.port, keepalive=KEEP_ALIVE_S)
        except (OSError, ConfigError) as error:
            self._loop.call_soon_threadsafe(self._not_connected, error)

    def _not_connected(self, error: BaseException | None) -> None:
        """Enter that the login has failed without the broker's answer, and try again after a while."""
        self._failed(login.unanswered(error, self._place, self._around.connected))

    def _failed(self, cause: Cause) -> None:
        self._counts.refused_logins[cause.kind] += 1
        self._around.causes[cause.kind] = cause
        if not self._is_leaving:
            self._loop.call_later(self._pauses.draw(), self.enter)

    # -- paho's socket in the event loop ------------------------------------------------------------------------

    def _on_socket_open(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.call_soon_threadsafe(self._watch, connection)

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
        if connection.fileno() >= 0:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)

    def _on_register_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        if threading.get_ident() == self._thread:
            self._watch_writing(connection)
        else:  # the first packet of a connection, which a thread of the entrance has made
            self._loop.call_soon_threadsafe(self._watch_writing, connection)

    def _watch_writing(self, connection: Any) -> None:  # noqa: ANN401
        if self._uses(connection):
            self._loop.add_writer(connection, self.client.loop_write)

    def _on_unregister_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.remove_writer(connection)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if self._is_up:
            self._is_up = False
            self._around.went()
            if not self._is_leaving:
                self._counts.lost_connections += 1
                self._pauses.lost(LEAST_PAUSE_S)
                self._loop.call_later(self._pauses.draw(), self.enter)
        elif not self._is_answered:
            self._not_connected(self.client.transport_error)

    # -- the device ---------------------------------------------------------------------------------------------

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._is_answered = True
        if reason.is_failure:
            user = self._around.address.username
            self._failed(login.answered(reason.value, str(reason), self._place, user, self._identity))
            return
        self._is_up = True
        self._around.came()
        self._counts.devices_connected += self._connections == 0
        self._connections += 1
        topics = (hello_topic(self._around.fleet), self._topic("plan"), self._topic("report/ack"))
        client.subscribe([(topic, 1) for topic in topics])
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
        own = birth(
            self.name,
            self._epoch,
            boot_id=self._boot_id,
            connection=self._connections,
            tags=[SWARM, *self._around.tags],
        )
        self._send("birth", own)
        self._state("online")
        if self._waiting is not None:
            self._send("report", self._waiting)

    def _state(self, state: Any) -> None:  # noqa: ANN401
        self._send("state", DeviceState(state=state, boot_id=self._boot_id, epoch=self._epoch))

    def _send(self, kind: Kind, message: AnyMessage) -> None:
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
                self._take_answer(decode_message(body, ReportAck))
            else:
                self._take_plan(decode_plan(body))
        except ProtocolError:
            counts.refused += 1

    def _take_hello(self, hello: Hello) -> None:
        if not self._is_leaving:
            self._epoch = hello.epoch
            self._counts.hellos += 1
            self._announce()

    def _take_answer(self, answer: ReportAck) -> None:
        if self._waiting is None or self._asked != (answer.job, answer.round, answer.attempt):
            return  # to a report that was sent twice
        self._waiting = None
        self._counts.reports[answer.outcome] += 1
        self._counts.round_trips_s.append(time.monotonic() - self._asked_at)

    def _take_plan(self, plan: Plan) -> None:
        if isinstance(plan, SyncPlan):
            sha256 = plan.adapter.file.sha256
            self._counts.proved[sha256] += self._proved != sha256
            self._proved = sha256
            self._send(
                "report",
                Synced(job=plan.job, round=plan.round, device=self.name, adapter_sha256=sha256, blob_bytes=0),
            )
        elif isinstance(plan, TrainPlan):
            self._train(plan)
        else:
            self._counts.plans_refused += 1
            self._refuse(plan)

    def _train(self, plan: TrainPlan) -> None:
        self._around.on_plan(plan.round)
        asked = (plan.job, plan.round, plan.attempt)
        if asked != self._asked:
            self._counts.plans += 1
            self._counts.lost_reports += self._waiting is not None
            self._asked, self._asked_at = asked, time.monotonic()
        self._state("busy")
        self._send("report", PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self.name))
        self._waiting = instant_report(self.name, plan, drawn_scalars(self.name, plan))
        self._send("report", self._waiting)
        self._state("online")

    def _refuse(self, plan: Any) -> None:  # noqa: ANN401 every plan that is no TrainPlan and no SyncPlan
        self._send(
            "report",
            PlanRefused(
                job=plan.job,
                round=plan.round,
                attempt=plan.attempt,
                device=self.name,
                code=ConfigError.exit_code,
                message="a session of covey swarm answers plans of forward passes alone",
            ),
        )
