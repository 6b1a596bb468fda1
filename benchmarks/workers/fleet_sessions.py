"""Many devices as real MQTT sessions in one asyncio process: TLS, certificates, signatures; they train in no time."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from paho.mqtt.enums import MQTTErrorCode

from benchmarks.workers.instant_fleet import birth, instant_report
from edge_runtime.errors import ProtocolError
from edge_runtime.network.mqtt_client import make_client
from edge_runtime.protocol.messages import decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted, ReportAck, Synced
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic, topic_for
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Refused, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.protocol.messages import AnyMessage
    from edge_runtime.protocol.reports import RoundReport
    from edge_runtime.protocol.topics import Kind
    from edge_runtime.signing.keys import Keys, PrivateKey

_KEEP_ALIVE_S = 60
_MISC_S = 1.0
_RECONNECT_S = 2.0
_BOOT = "boot"


@dataclass
class Counts:
    """What all sessions have seen together.

    Attributes:
        connects: logins that the broker took.
        lost_connections: connections that broke.
        messages_up: messages given to the broker.
        messages_down: messages received.
        bytes_up: their payloads.
        bytes_down: their payloads.
        refused: messages whose signature or form was refused.
        check_s: CPU seconds of checking signatures.
        checked: signatures checked.
        sign_s: CPU seconds of signing.
        plans: attempts at rounds that a device was asked for.
        taken: attempts at rounds whose report the server has acknowledged as taken.
        synced: final adapters, by device.
    """

    connects: int = 0
    lost_connections: int = 0
    messages_up: int = 0
    messages_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    refused: int = 0
    check_s: float = 0.0
    checked: int = 0
    sign_s: float = 0.0
    plans: set[tuple[str, int, int]] = field(default_factory=set)
    taken: set[tuple[str, int, int]] = field(default_factory=set)
    synced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """A device: its name, its files for TLS, and its key, which signs."""

    name: str
    tls: TlsFiles
    key: PrivateKey


class Session:
    """One device: a paho client that the event loop drives, with the shipped signer, verifier and messages.

    Args:
        member: who it is.
        address: the broker.
        fleet: the fleet's name.
        keys: the server's keys.
        counts: added to.
        on_plan: called with the index of a round when its plan arrives.
    """

    def __init__(
        self,
        member: Member,
        address: BrokerAddress,
        fleet: str,
        keys: Keys,
        counts: Counts,
        on_plan: Callable[[int], None],
    ) -> None:
        self._name, self._fleet, self._address = member.name, fleet, address
        self._counts, self._on_plan = counts, on_plan
        self._connection = 0
        self._epoch: str | None = None
        self._signer = Signer(self._name, fleet, _BOOT, member.key, functools.partial(next, itertools.count()))
        self._verifier = Verifier(self._name, fleet, _BOOT, keys)
        self._loop = asyncio.get_running_loop()
        self._is_leaving = False
        self._waiting: RoundReport | None = None  # a report without its acknowledgement: sent again, as devices do
        client = self.client = make_client(address, f"covey-{fleet}-{self._name}", member.tls, keep_session=False)
        will, topic = DeviceState(state="lost", boot_id=_BOOT), topic_for(fleet, self._name, "state")
        client.will_set(topic, self._signer.seal(topic, encode_message(will), role="will"), qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message = self._on_message

    def connect(self) -> None:
        """Connect; the handshake of TLS blocks, as it does in paho."""
        self.client.connect(self._address.host, self._address.port, keepalive=_KEEP_ALIVE_S)

    def leave(self) -> None:
        """Disconnect for good."""
        self._is_leaving = True
        self.client.disconnect()

    # -- paho's socket in the event loop ------------------------------------------------------------------------

    def _on_socket_open(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.add_reader(connection, self._read, connection)

    def _read(self, connection: Any) -> None:  # noqa: ANN401
        while self.client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pending = getattr(connection, "pending", None)
            if pending is None or not pending():  # what TLS has read already wakes no selector
                return

    def _on_socket_close(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.remove_reader(connection)
        self._loop.remove_writer(connection)

    def _on_register_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.add_writer(connection, self.client.loop_write)

    def _on_unregister_write(self, _client: Any, _data: Any, connection: Any) -> None:  # noqa: ANN401
        self._loop.remove_writer(connection)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if not self._is_leaving:
            self._counts.lost_connections += 1
            self._loop.call_later(_RECONNECT_S, self._again)

    def _again(self) -> None:
        if self._is_leaving:
            return
        try:
            self.client.reconnect()
        except OSError:
            self._loop.call_later(_RECONNECT_S, self._again)

    # -- the device ---------------------------------------------------------------------------------------------

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            raise SystemExit(f"the broker refused {self._name}: {reason}")
        self._connection += 1
        self._counts.connects += 1
        client.subscribe([(topic, 1) for topic in (hello_topic(self._fleet), self._topic("plan"))])
        client.subscribe(self._topic("report/ack"), qos=1)
        if self._epoch is not None:
            self._announce()

    def _topic(self, kind: Kind) -> str:
        return topic_for(self._fleet, self._name, kind)

    def _announce(self) -> None:
        assert self._epoch is not None  # noqa: S101 set by the hello
        own = msgspec.structs.replace(birth(self._name, self._epoch), boot_id=_BOOT, connection=self._connection)
        self._send("birth", own)
        self._state("online")
        if self._waiting is not None:
            self._send("report", self._waiting)

    def _state(self, state: Any) -> None:  # noqa: ANN401
        self._send("state", DeviceState(state=state, boot_id=_BOOT, epoch=self._epoch))

    def _send(self, kind: Kind, message: AnyMessage) -> None:
        topic, began = self._topic(kind), time.thread_time()
        sealed = self._signer.seal(topic, encode_message(message), self._verifier.session_of(SERVER))
        self._counts.sign_s += time.thread_time() - began
        self._counts.messages_up += 1
        self._counts.bytes_up += len(sealed)
        self.client.publish(topic, sealed, qos=1, retain=kind in ("birth", "state"))

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:  # noqa: ANN401
        counts = self._counts
        counts.messages_down += 1
        counts.bytes_down += len(message.payload)
        began = time.thread_time()
        result = self._verifier.check(message.topic, message.payload)
        counts.check_s, counts.checked = counts.check_s + time.thread_time() - began, counts.checked + 1
        if isinstance(result, Refused):
            counts.refused += 1
        elif result.route.kind == "hello":
            self._epoch = decode_message(result.body, Hello).epoch
            self._announce()
        elif result.route.kind == "report/ack":
            ack = decode_message(result.body, ReportAck)
            if self._waiting is not None and (ack.round, ack.attempt) == (self._waiting.round, self._waiting.attempt):
                self._waiting = None
            if ack.outcome == "taken":
                counts.taken.add((self._name, ack.round, ack.attempt))
        else:
            self._answer(result.body)

    def _answer(self, body: bytes) -> None:
        plan = decode_plan(body)
        if isinstance(plan, SyncPlan):
            sha256 = plan.adapter.file.sha256
            self._counts.synced[self._name] = sha256
            proof = Synced(job=plan.job, round=plan.round, device=self._name, adapter_sha256=sha256, blob_bytes=0)
            self._send("report", proof)
        elif isinstance(plan, TrainPlan):
            self._on_plan(plan.round)
            self._counts.plans.add((self._name, plan.round, plan.attempt))
            self._state("busy")
            self._send("report", PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self._name))
            rng = np.random.Generator(np.random.PCG64([plan.round, *self._name.encode()]))
            scalars = rng.normal(scale=0.1, size=plan.steps * plan.rule.scalars_per_step).astype(np.float32)
            self._waiting = instant_report(self._name, plan, scalars)
            self._send("report", self._waiting)
            self._state("online")
        else:
            raise ProtocolError("a plan for devices with backpropagation came", "these devices have none")


async def connect_all(sessions: list[Session], until: Callable[[], bool]) -> None:
    """Connect all sessions and stay until ``until``, which is asked once a second, is true; then leave."""
    for session in sessions:
        session.connect()
        await asyncio.sleep(0)  # what has arrived for the others is read in between
    while not until():
        await asyncio.sleep(_MISC_S)
        for session in sessions:
            session.client.loop_misc()
    for session in sessions:
        session.leave()
    await asyncio.sleep(_MISC_S)  # the last packets are written
