"""Messages that wait for the agent, in order of arrival, and whether one of them makes the plan at work pointless."""

from __future__ import annotations

import collections
import math
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, ProtocolError
from edge_runtime.network.transport import Connected, GivenUp, Message
from edge_runtime.protocol.messages import decode_plan
from edge_runtime.protocol.plans import Plan, SyncPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edge_runtime.network.transport import Event, Transport

_LOOK_S = 0.25
"""Seconds between two looks for a plan while a transfer waits to be tried again."""


class Inbox:
    """A queue between the transport and the agent.

    Args:
        transport: the device's connection.
        plan_topic: the topic on which the device's plans arrive.
        at_once: called with each new connection, each message that was given up, and each message on ``urgent_topics``
            as it arrives, also while a plan is at work: the server waits for the answer.
        urgent_topics: the topics of the server's hello and of its requests for the log.
    """

    def __init__(
        self, transport: Transport, plan_topic: str, urgent_topics: Collection[str], at_once: Callable[[Event], None]
    ) -> None:
        self._transport, self._plan_topic = transport, plan_topic
        self._urgent_topics, self._at_once = urgent_topics, at_once
        self._waiting: collections.deque[Message] = collections.deque()

    def take(self) -> Message | None:
        """Remove and return the message that has waited longest; None: no message waits."""
        return self._waiting.popleft() if self._waiting else None

    def receive(self, timeout_s: float) -> Message | None:
        """Return the transport's next message; None: none came within ``timeout_s``, or it was handled at once."""
        event = self._transport.receive(timeout_s)
        return None if event is None else self._unless_urgent(event)

    def collect(self) -> None:
        """Move everything that has arrived from the transport into the queue, without waiting."""
        while (event := self._transport.receive(0)) is not None:
            if (message := self._unless_urgent(event)) is not None:
                self._waiting.append(message)

    def _unless_urgent(self, event: Event) -> Message | None:
        if isinstance(event, (Connected, GivenUp)) or event.topic in self._urgent_topics:
            self._at_once(event)
            return None
        return event

    def has_plan(self) -> bool:
        """Whether a plan has arrived that nobody has taken."""
        self.collect()
        return any(message.topic == self._plan_topic for message in self._waiting)

    def pause_transfer(self, seconds: float) -> None:
        """Wait until a transfer is to be tried again.

        Raises:
            NetworkError: a plan has arrived; it says where the server is now.
        """
        for _ in range(math.ceil(seconds / _LOOK_S)):
            if self.has_plan():
                raise NetworkError("given up, since a plan has arrived that says where the server is now")
            time.sleep(_LOOK_S)

    def has_newer(self, plan: Plan) -> bool:
        """Whether a plan waits in the queue that makes this one pointless."""
        return any(supersedes(message.payload, plan) for message in self._waiting if message.topic == self._plan_topic)


def supersedes(payload: bytes, plan: Plan) -> bool:
    """Whether a waiting plan makes this one pointless: it is of another job, or of a later round or attempt."""
    try:
        other = decode_plan(payload)
    except ProtocolError:
        return False  # the agent reports it when its turn comes
    return other.job != plan.job or round_and_attempt(other) > round_and_attempt(plan)


def round_and_attempt(plan: Plan) -> tuple[int, int]:
    """Return a plan's round and attempt; a sync plan counts as attempt 0."""
    return plan.round, 0 if isinstance(plan, SyncPlan) else plan.attempt
