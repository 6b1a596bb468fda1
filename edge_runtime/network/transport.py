"""How messages travel: the seam between Covey and a broker.

MqttTransport (transport_mqtt) is the real one; Hub and InProcessTransport here are a broker in the process: retained
messages, wills and wildcards, for tests and simulations of large fleets.
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
    """The connection stands, for the first time or again: announce yourself."""


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when this member vanishes without a goodbye."""

    topic: str
    payload: bytes


Event = Message | Connected


class Transport(Protocol):
    """A connection to a broker. Messages are delivered at least once (QoS 1)."""

    @property
    def broker_host(self) -> str:
        """Host name of the broker."""

    def subscribe(self, topic_filter: str) -> None:
        """Ask for messages; holds across reconnects."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send a message; kept and sent later where the connection is down."""

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event, in order of arrival, or None after ``timeout_s`` (None: wait for ever)."""

    def close(self) -> None:
        """Send what is waiting and leave without a will."""
