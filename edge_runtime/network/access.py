"""Asks a broker, before any work, whether it lets a member log in, subscribe and publish where the member must.

Logs in as a member does, with MQTT 3.1.1, and subscribes. Publishing is then tried with MQTT 5, because 3.1.1 has no
word for a message that an access list drops: mosquitto confirms it and drops it. The messages are empty, and nobody
keeps them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.network.cause import closed
from edge_runtime.network.causes import cause_of_error, denied, refusal_cause, silent
from edge_runtime.network.diagnose import exact
from edge_runtime.network.mqtt_client import make_client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.cause import Cause, Place

_TICK_S = 0.05
_TIMEOUT_S = 5.0
ENDINGS = 3
"""Connections in a row that end at a topic or a message until it is the reason: a broker that stops ends them too."""


@dataclass(frozen=True)
class Access:
    """What a broker lets a member do.

    Attributes:
        causes: what it does not, the most important first; empty: nothing was found.
        is_publishing_known: whether it could be asked about publishing: it speaks MQTT 5.
    """

    causes: Sequence[Cause]
    is_publishing_known: bool


def check_access(
    address: BrokerAddress,
    identity: str,
    tls: TlsFiles | None,
    *,
    reads: Sequence[str],
    writes: Sequence[str],
    timeout_s: float = _TIMEOUT_S,
) -> Access:
    """Log in, subscribe to ``reads``, and publish empty messages on ``writes``.

    Args:
        address: the broker.
        identity: client id; another one than the member's, whose session it would take over.
        tls: this member's TLS files.
        reads: topics or filters that the member subscribes to.
        writes: topics that the member publishes on.
        timeout_s: how long each of the two conversations may take.

    Raises:
        ConfigError: the TLS files cannot be used.
    """

    def talk(protocol: MQTTProtocolVersion) -> Conversation | Cause:
        asking = Conversation(address, identity, tls, protocol, timeout_s)
        return asking.log_in() or asking

    first = Conversation(address, identity, tls, MQTTProtocolVersion.MQTTv311, timeout_s)
    cause = first.log_in()
    if cause is not None:
        return Access([exact(cause, first.node, tls)], is_publishing_known=False)
    place, user = first.place, address.username
    refused = _refused(first, lambda: talk(MQTTProtocolVersion.MQTTv311), "read", reads)
    causes = [denied(place, "read", topic, user) for topic in refused]
    second = talk(MQTTProtocolVersion.MQTTv5)
    if not isinstance(second, Conversation):
        return Access(causes, is_publishing_known=False)
    refused = _refused(second, lambda: talk(MQTTProtocolVersion.MQTTv5), "write", writes)
    return Access([*causes, *(denied(place, "write", topic, user) for topic in refused)], is_publishing_known=True)


def _refused(
    asking: Conversation | Cause,
    talk_again: Callable[[], Conversation | Cause],
    action: Literal["read", "write"],
    topics: Sequence[str],
) -> list[str]:
    """Return the topics that a broker refuses.

    Some brokers end the connection in place of an answer (mosquitto 2.0.11 at the second refusal). So does one that is
    stopped: a topic is refused only where ENDINGS connections in a row end at it.
    """
    found: list[str] = []
    left, endings = list(topics), 0
    while left and isinstance(asking, Conversation):  # not where the broker is gone
        refused, answered = asking.refused(action, left)
        found += refused
        endings = endings + 1 if answered == 0 else 1
        left = left[answered:]
        if left and endings == ENDINGS:
            found.append(left.pop(0))
            endings = 0
        if left:
            asking = talk_again()
    return found


class Conversation:
    """One connection, driven in this thread.

    Attributes:
        place: the broker; of a cluster, the node that is talked to.
        largest_packet_bytes: what the broker says that it takes at most; None: nothing, or not logged in.
    """

    def __init__(
        self,
        address: BrokerAddress,
        identity: str,
        tls: TlsFiles | None,
        protocol: MQTTProtocolVersion,
        timeout_s: float,
    ) -> None:
        self._address, self._identity, self._timeout_s = address, identity, timeout_s
        self._tls = tls
        self._client = make_client(address, identity, tls, protocol=protocol, keep_session=False)
        self._client.connect_timeout = timeout_s
        self._login: Any = None  # the reason code of CONNACK
        self._answers: dict[int, bool] = {}  # by the number of the packet: whether it was refused
        self._codes: dict[int, int] = {}  # by the number of the packet: MQTT's reason code for a published message
        self.largest_packet_bytes: int | None = None
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish

    @property
    def node(self) -> BrokerAddress:
        """The broker's address; of a cluster, that of the node that is talked to."""
        return self._client.nodes.now

    @property
    def place(self) -> Place:
        """The broker, or the node of a cluster that is talked to."""
        return self.node.place(self._tls)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:  # noqa: ANN401
        self._login = reason
        self.largest_packet_bytes = getattr(properties, "MaximumPacketSize", None)

    def _on_subscribe(self, _client: Any, _data: Any, number: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        self._answers[number] = any(reason.is_failure for reason in reasons)

    def _on_publish(self, _client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._answers[number] = reason.is_failure
        self._codes[number] = reason.value if reason.is_failure else 0

    def log_in(self) -> Cause | None:
        """Connect and log in; return why that does not work."""
        try:
            self._client.connect(self._address.host, self._address.port)
        except OSError as error:
            return cause_of_error(error, self.place)
        is_up = self._turn(lambda: self._login is not None)
        if self._login is None:
            broken = self._client.transport_error
            if broken is not None:
                return cause_of_error(broken, self.place)
            return silent(self.place) if is_up else closed(None, self.place)
        if self._login.is_failure:
            words, user = str(self._login), self._address.username
            return refusal_cause(self._login.value, words, self.place, user=user, identity=self._identity)
        return None

    def refused(self, action: Literal["read", "write"], topics: Sequence[str]) -> tuple[list[str], int]:
        """Try an action on topics, then leave.

        Returns:
            The topics that are refused; and how many were asked for until the connection ended, if it did, the one at
            which it ended not counted.
        """
        found: list[str] = []
        for asked, topic in enumerate(topics):
            number = self._send(action, topic)
            is_up = self._turn(lambda number=number: number in self._answers)  # type: ignore[misc]
            if not is_up:
                return found, asked
            if self._answers.get(number, False):
                found.append(topic)
        self.leave()
        return found, len(topics)

    def publish(self, topic: str, payload: bytes) -> int | None:
        """Publish a message; return 0 where the broker takes it, its reason code, or None where it says nothing."""
        number = self._client.publish(topic, payload, qos=1).mid
        self._turn(lambda: number in self._codes)
        return self._codes.get(number)

    def leave(self) -> None:
        """End the connection properly."""
        self._client.disconnect()
        self._client.loop(_TICK_S)

    def _send(self, action: Literal["read", "write"], topic: str) -> int:
        if action == "write":
            return self._client.publish(topic, b"", qos=1).mid
        number = self._client.subscribe(topic, qos=1)[1]
        return -1 if number is None else number

    def _turn(self, is_done: Callable[[], bool]) -> bool:
        """Exchange packets until something is done or the time is up; return whether the connection is still up."""
        ends_at = time.monotonic() + self._timeout_s
        while not is_done() and time.monotonic() < ends_at:
            if self._client.loop(_TICK_S) != 0:
                return is_done()
        return True
