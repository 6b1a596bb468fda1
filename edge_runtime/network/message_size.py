"""Asks a broker whether it takes a message of a size, before anything depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.network.access import ENDINGS, Conversation
from edge_runtime.network.causes import denied, oversize

if TYPE_CHECKING:
    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.cause import Cause

_TIMEOUT_S = 10.0
_HEADER_BYTES = 16
"""Bytes of a packet beside topic and payload, at most: MQTT 5 counts all of them."""
_NOT_AUTHORISED = 135


def largest_packet_bytes(
    address: BrokerAddress, identity: str, tls: TlsFiles | None, timeout_s: float = _TIMEOUT_S
) -> int | None:
    """Return the largest packet that the broker says it takes; None: it says nothing, or cannot be asked.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    asking = Conversation(address, identity, tls, MQTTProtocolVersion.MQTTv5, timeout_s)
    if asking.log_in() is not None:
        return None
    asking.leave()
    return asking.largest_packet_bytes


def check_size(
    address: BrokerAddress,
    identity: str,
    tls: TlsFiles | None,
    *,
    topic: str,
    size_bytes: int,
    timeout_s: float = _TIMEOUT_S,
) -> Cause | None:
    """Publish a message of a size; return why the broker does not take it, None where it does.

    With MQTT 5 the broker says its limit and its reason; a broker without it closes the connection, if anything. One
    that is stopped or restarted closes it too: only what is left without an answer ENDINGS times is too large.

    Args:
        address: the broker.
        identity: client id, another one than the member's.
        tls: this member's TLS files.
        topic: a topic that nobody reads.
        size_bytes: bytes of the payload.
        timeout_s: how long each of the two conversations may take.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    cause = None
    for _ in range(ENDINGS):
        is_answered, cause = _ask_once(address, identity, tls, topic, size_bytes, timeout_s)
        if is_answered:
            break
    return cause


def _ask_once(
    address: BrokerAddress, identity: str, tls: TlsFiles | None, topic: str, size_bytes: int, timeout_s: float
) -> tuple[bool, Cause | None]:
    """Return whether a broker has answered, and why it does not take a message; see check_size."""
    for protocol in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
        asking = Conversation(address, identity, tls, protocol, timeout_s)
        if asking.log_in() is not None:
            continue  # without MQTT 5, or not at all: what keeps a member out is said where it logs in
        limit = asking.largest_packet_bytes
        if limit is not None and size_bytes + len(topic.encode()) + _HEADER_BYTES > limit:
            asking.leave()
            return True, oversize(asking.place, size_bytes, limit)
        code = asking.publish(topic, bytes(size_bytes))
        asking.leave()
        if code == _NOT_AUTHORISED:
            return True, denied(asking.place, "write", topic, address.username)
        return code is not None, None if code == 0 else oversize(asking.place, size_bytes, limit)
    return True, None
