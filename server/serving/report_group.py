"""Takes reports over several connections: a broker that knows shared subscriptions hands each report to one of them.

All else goes over the main connection, which is a member of the group too: where the others are lost, it has all
reports. A broker without shared subscriptions gets the plain one, and the main connection carries everything.
"""

from __future__ import annotations

import logging
import queue
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from edge_runtime.network.transport import Connected, WrappedTransport
from edge_runtime.protocol.topics import shared_filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.mqtt import MqttTransport
    from edge_runtime.network.transport import Event

_LOG = logging.getLogger(__name__)
MOST = 32
"""Connections that a server may have for reports; ours: each is a thread."""


class ReportGroup(WrappedTransport):
    """A server's connections to its broker, as one; see Transport.

    Events of all of them are received in one thread, in the order in which they came. A connection that was lost and is
    back counts as a new connection of the server, whichever it is: the broker may have lost what was under way on it,
    and the hello that follows lets devices send again what is open.

    Args:
        connect: makes a connection from its number and from what gets its events; number 0 is the main one.
        connections: how many there are to be, the main one included.
        reports: the filter of the reports' topics.
        group: the group's name; nobody else may know it, or he could take reports away.
        hands_to_groups: asks the broker whether it hands messages to groups; None: it could not be asked.

    Raises:
        NetworkError: there is no main connection.
    """

    def __init__(
        self,
        connect: Callable[[int, Callable[[Event], None]], MqttTransport],
        connections: int,
        reports: str,
        group: str,
        hands_to_groups: Callable[[], bool | None],
    ) -> None:
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._main = connect(0, self._inbox.put)
        super().__init__(self._main)
        self._reports, self._shared, self._hands_to_groups = reports, shared_filter(group, reports), hands_to_groups
        self._further: list[MqttTransport] = []
        self._is_checked = True  # whether the broker was asked since the last connection
        if not self._hands_to_groups():
            _say_that_it_lacks_groups()
            return
        try:
            for number in range(1, connections):
                self._further.append(connect(number, _without_the_first(self._inbox.put)))
        except NetworkError as error:
            _LOG.warning("reports come through %d connections: %s", len(self._further) + 1, error)

    @property
    def connections(self) -> int:
        """How many connections reports come through."""
        return len(self._further) + 1

    def subscribe(self, topic_filter: str) -> None:
        """See Transport; to the reports every connection subscribes, as a member of the group."""
        if topic_filter != self._reports or not self._further:
            self._main.subscribe(topic_filter)
            return
        for transport in (self._main, *self._further):
            transport.subscribe(self._shared)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        try:
            event = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Connected):
            self._check_groups()
        return event

    def close(self) -> None:
        """See Transport."""
        for transport in self._further:
            transport.close()
        self._main.close()

    def _check_groups(self) -> None:
        """See that the broker to which a connection was made anew hands messages to groups: it may be another one.

        It happens before the hello that follows the connection, with which devices send again what no group has heard.
        """
        was_checked, self._is_checked = self._is_checked, False
        if was_checked or not self._further or self._hands_to_groups() is not False:
            return
        _say_that_it_lacks_groups()
        further, self._further = self._further, []
        for transport in further:
            transport.close()
        self._main.unsubscribe(self._shared)
        self._main.subscribe(self._reports)


def _say_that_it_lacks_groups() -> None:
    _LOG.warning(
        "this broker does not hand messages to groups of subscribers (shared subscriptions): all reports come through "
        "one connection, and nothing is lost; use a broker that has them, as mosquitto and EMQX do, or start without "
        "--report-connections"
    )


def _without_the_first(put: Callable[[Event], None]) -> Callable[[Event], None]:
    """Return what passes events on, but for the first login: nothing was lost before it."""
    has_begun = False

    def take(event: Event) -> None:
        nonlocal has_begun
        if isinstance(event, Connected) and not has_begun:
            has_begun = True
            return
        put(event)

    return take
