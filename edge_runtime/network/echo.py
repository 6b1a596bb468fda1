"""Asks a broker whether messages really arrive: one that comes back to its sender, and one that the broker keeps.

And whether it hands messages to groups of subscribers: a broker that does not may take such a subscription for a topic.

A broker confirms a subscription and a message that its access list drops; what arrives is the proof.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.network.access import Conversation

if TYPE_CHECKING:
    from edge_runtime.network.address import BrokerAddress, TlsFiles

_TIMEOUT_S = 3.0


class _Hearing(Conversation):
    """A conversation that keeps the messages which arrive."""

    is_logged_in = False

    def __init__(self, address: BrokerAddress, identity: str, tls: TlsFiles | None, timeout_s: float) -> None:
        super().__init__(address, identity, tls, MQTTProtocolVersion.MQTTv311, timeout_s)
        self._heard: dict[str, bytes] = {}
        self._client.on_message = self._on_message

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:  # noqa: ANN401
        self._heard[message.topic] = bytes(message.payload)

    def hear(self, topic: str, said: bytes | None, topic_filter: str | None = None) -> bytes | None:
        """Subscribe to a topic, publish ``said`` there (None: nothing), and return the first message that arrives.

        ``topic_filter`` is what is subscribed to; None: the topic.
        """
        if self.log_in() is not None:
            return None
        self.is_logged_in = True
        number = self._send("read", topic_filter or topic)
        is_up = self._turn(lambda: number in self._answers)
        if is_up and self._answers.get(number) is False:
            if said is not None:
                self._client.publish(topic, said, qos=1)
            self._turn(lambda: topic in self._heard)
        self.leave()
        return self._heard.get(topic)


def comes_back(
    address: BrokerAddress, identity: str, tls: TlsFiles | None, topic: str, timeout_s: float = _TIMEOUT_S
) -> bool:
    """Return whether an empty message on a topic comes back to its sender.

    Args:
        address: the broker.
        identity: client id; another one than the member's, whose session it would take over.
        tls: this member's TLS files.
        topic: a topic that the member may read and write; nobody keeps the message.
        timeout_s: how long login, subscription and message may take, each.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    return _Hearing(address, identity, tls, timeout_s).hear(topic, b"") is not None


def kept_message(
    address: BrokerAddress, identity: str, tls: TlsFiles | None, topic: str, timeout_s: float = _TIMEOUT_S
) -> bytes | None:
    """Return the message that a broker keeps for a topic; None: it keeps none, or gives it to nobody who asks as this.

    See comes_back.
    """
    return _Hearing(address, identity, tls, timeout_s).hear(topic, None) or None


def hands_to_groups(
    address: BrokerAddress,
    identity: str,
    tls: TlsFiles | None,
    topic: str,
    topic_filter: str,
    timeout_s: float = _TIMEOUT_S,
) -> bool | None:
    """Return whether a message reaches a group of subscribers; None: the broker could not be asked.

    See comes_back.

    Args:
        address: see comes_back.
        identity: see comes_back.
        tls: see comes_back.
        topic: gets an empty message.
        topic_filter: the group's filter, which the topic fits.
        timeout_s: see comes_back.
    """
    hearing = _Hearing(address, identity, tls, timeout_s)
    is_heard = hearing.hear(topic, b"", topic_filter) is not None
    return is_heard if hearing.is_logged_in else None
