"""A broker within one process: the shipped fake of the MQTT transport, for tests and simulation."""

from __future__ import annotations

import queue
import threading

from edge_runtime.network.transport import Connected, Event, Message, Will


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic fits a filter with ``+`` and a trailing ``#``."""
    wanted, parts = topic_filter.split("/"), topic.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(parts) or part not in ("+", parts[index]):
            return False
    return len(wanted) == len(parts)


class Hub:
    """A broker in the process.

    Attributes:
        published: number of messages published so far.
    """

    def __init__(self) -> None:
        self.published = 0
        self._lock = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._members: list[InProcessTransport] = []

    def join(self, will: Will | None = None) -> InProcessTransport:
        """Return a new member's transport."""
        member = InProcessTransport(self, will)
        with self._lock:
            self._members.append(member)
        member.deliver(Connected())
        return member

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver a message to every member that has subscribed to its topic."""
        with self._lock:
            self.published += 1
            if retain:
                self._retained[topic] = payload
            members = list(self._members)
        for member in members:
            if member.wants(topic):
                member.deliver(Message(topic, payload))

    def send_retained(self, member: InProcessTransport, topic_filter: str) -> None:
        """Deliver the retained messages to a new subscriber."""
        with self._lock:
            retained = [Message(t, p) for t, p in self._retained.items() if matches(topic_filter, t)]
        for message in retained:
            member.deliver(message)

    def leave(self, member: InProcessTransport) -> None:
        """Forget a member."""
        with self._lock:
            if member in self._members:
                self._members.remove(member)


class InProcessTransport:
    """A member's connection to a Hub."""

    def __init__(self, hub: Hub, will: Will | None) -> None:
        self._hub = hub
        self._will = will
        self._filters: list[str] = []
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()

    @property
    def broker_host(self) -> str:
        """See Transport."""
        return "127.0.0.1"

    @property
    def local_address(self) -> str | None:
        """See Transport."""
        return "127.0.0.1"

    def wants(self, topic: str) -> bool:
        """Whether one of its filters matches."""
        return any(matches(topic_filter, topic) for topic_filter in self._filters)

    def deliver(self, event: Event) -> None:
        """Put an event into this member's queue."""
        self._inbox.put(event)

    def subscribe(self, topic_filter: str) -> None:
        """See Transport."""
        self._filters.append(topic_filter)
        self._hub.send_retained(self, topic_filter)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See Transport."""
        self._hub.publish(topic, payload, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        try:
            return self._inbox.get(block=timeout_s != 0, timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """See Transport."""
        self._hub.leave(self)

    def vanish(self) -> None:
        """Leave the way a power cut does: the hub publishes the will."""
        self._hub.leave(self)
        if self._will is not None:
            self._hub.publish(self._will.topic, self._will.payload, retain=True)
