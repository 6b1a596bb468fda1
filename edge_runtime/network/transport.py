"""How messages travel: the seam between Covey and a broker.

network/mqtt.py connects to a real broker. network/in_process.py is a broker within the process, with retained messages,
wills and wildcards, for tests and simulations of large fleets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """A message that arrived."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Connected:
    """The connection was made, for the first time or again: the member announces itself now."""


@dataclass(frozen=True)
class Will:
    """The message that the broker publishes, retained, when this member vanishes without a goodbye."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class GivenUp:
    """A message of this member's own that the broker does not take; it is not sent again.

    Attributes:
        topic: its topic.
        payload: its payload.
        finding: why; names size and limit.
        remedy: what to do about it.
    """

    topic: str
    payload: bytes
    finding: str
    remedy: str


Event = Message | Connected | GivenUp


class Transport(Protocol):
    """A connection to a broker. Messages are delivered at least once (QoS 1)."""

    @property
    def broker_host(self) -> str:
        """Host name of the broker."""

    @property
    def local_address(self) -> str | None:
        """This machine's address on the connection to the broker; None: not known."""

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe to a topic filter; the subscription survives reconnects."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send a message; while the connection is down it is kept, and sent later."""

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event in order of arrival; None: none came in ``timeout_s`` (None: wait without limit)."""

    def close(self) -> None:
        """Send what waits, and leave; the broker does not publish the will."""


class WrappedTransport:
    """A transport that hands everything on to another one: the base of those that do one thing differently.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def broker_host(self) -> str:
        """See Transport."""
        return self._inner.broker_host

    @property
    def local_address(self) -> str | None:
        """See Transport."""
        return self._inner.local_address

    def subscribe(self, topic_filter: str) -> None:
        """See Transport."""
        self._inner.subscribe(topic_filter)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See Transport."""
        self._inner.publish(topic, payload, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        return self._inner.receive(timeout_s)

    def close(self) -> None:
        """See Transport."""
        self._inner.close()
