"""A virtual clock that jumps from event to event, and a transport on it: no threads, no waits, a fixed order."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from edge_runtime.network.transport import Connected, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.transport import Event


class VirtualWorld:
    """The queue of a simulation's events.

    Attributes:
        now: virtual seconds.
        delivered: messages that reached the server.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.delivered = 0
        self._events: list[tuple[float, int, Message | Callable[[], Message | None]]] = []
        self._count = 0

    def clock(self) -> float:
        """Return virtual seconds."""
        return self.now

    def at(self, when_s: float, event: Message | Callable[[], Message | None]) -> None:
        """Schedule a message to the server, or a call, which may make one.

        Events at the same time happen in the order of scheduling.
        """
        heapq.heappush(self._events, (max(when_s, self.now), self._count, event))
        self._count += 1

    def next_message(self, until_s: float) -> Message | None:
        """Advance to the next message for the server, at most to a time; None: there is none until then."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, event = heapq.heappop(self._events)
            message = event if isinstance(event, Message) else event()
            if message is not None:
                self.delivered += 1
                return message
        self.now = until_s
        return None


class VirtualTransport:
    """The server's connection to simulated devices.

    Args:
        world: the clock and the queue of events.
        deliver: receives topic and payload of what the server publishes.
    """

    def __init__(self, world: VirtualWorld, deliver: Callable[[str, bytes], None]) -> None:
        self._world = world
        self._deliver = deliver
        self._is_new = True

    @property
    def broker_host(self) -> str:
        """See Transport."""
        return "127.0.0.1"

    @property
    def local_address(self) -> str | None:
        """See Transport."""
        return None

    def subscribe(self, topic_filter: str) -> None:
        """See Transport; does nothing: devices send to the server only."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:  # noqa: ARG002
        """See Transport."""
        self._deliver(topic, payload)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport; the timeout is virtual time, and the first event is the connection."""
        if self._is_new:
            self._is_new = False
            return Connected()
        return self._world.next_message(float("inf") if timeout_s is None else self._world.now + timeout_s)

    def close(self) -> None:
        """See Transport."""
