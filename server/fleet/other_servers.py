"""One server for a fleet: servers look for each other through the broker, and the younger gives way.

A server that starts asks on the fleet's topic of servers, and a server that runs answers at once, in a thread of its
own: the coordinator may be busy. Of two that find each other, the one with the smaller age ends with an error that
names the other; so neither throws the other out, and no round is shared between them.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import ProtocolError
from edge_runtime.network.transport import Connected, Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.side_messages import ServerPresent
from edge_runtime.protocol.topics import servers_topic
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.transport import Event, Transport

_LOG = logging.getLogger(__name__)
ANSWER_S = 3.0
"""Seconds that a starting server waits for an answer."""
_TICK_S = 0.5
_SAME_AGE_S = 2.0
"""Ages that differ by less are the same: messages take time."""


@dataclass(frozen=True)
class Myself:
    """What a server says of itself.

    Attributes:
        fleet: the fleet.
        server_id: random, new with every start.
        hostname: of its machine.
    """

    fleet: str
    server_id: str
    hostname: str


def gives_way(server_id: str, age_s: float, other: ServerPresent) -> bool:
    """Whether a server gives way to another: it is younger or, at the same age, its id is the larger one."""
    if abs(age_s - other.age_s) < _SAME_AGE_S:
        return server_id > other.server_id
    return age_s < other.age_s


class OtherServers:
    """Watches for other servers of the fleet.

    Args:
        myself: this server.
        transport: a connection of its own, which nobody else receives from; it stays open until ``close``.
        clock: returns monotonic seconds.
        is_lost: whether this server has lost its ledger. Then it answers nobody, so that a standby which has the
            ledger now can begin; once it has the ledger again, it asks who is here.
    """

    def __init__(
        self,
        myself: Myself,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self._myself, self._transport, self._clock, self._is_lost = myself, transport, clock, is_lost
        self._was_lost = False
        self._topic = servers_topic(myself.fleet)
        self._began_at = clock()
        self._found: JobError | None = None
        self._named: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="other-servers", daemon=True)
        transport.subscribe(self._topic)

    def begin(self, answer_s: float = ANSWER_S) -> None:
        """Ask whether another server is here, wait for the answer, and go on watching in a thread.

        Args:
            answer_s: how long to wait; 0 where no other server can be on this broker yet.

        Raises:
            JobError: another server of this fleet is here; names its machine.
        """
        self._say(asks=True)
        ends_at = time.monotonic() + answer_s
        while self._found is None and (left_s := ends_at - time.monotonic()) > 0:
            self._take(self._transport.receive(left_s))
        self.check()
        self._thread.start()

    def check(self) -> None:
        """Raise where another server was found that this one gives way to.

        Raises:
            JobError: names the other server's machine.
        """
        if self._found is not None:
            raise self._found

    def close(self) -> None:
        """End the thread and the connection."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._transport.close()

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                self._take(self._transport.receive(_TICK_S))
                self._look_at_ledger()
            except Exception:  # noqa: BLE001 one message never ends the watch
                _LOG.exception("could not take a message on %s by a fault of Covey; please report it", self._topic)
                self._ended.wait(_TICK_S)

    def _look_at_ledger(self) -> None:
        """Ask who is here, where this server did not answer for a while and does now."""
        was_lost, self._was_lost = self._was_lost, self._is_lost()
        if was_lost and not self._was_lost:
            self._say(asks=True)

    def _say(self, *, asks: bool) -> None:
        present = ServerPresent(
            server_id=self._myself.server_id, hostname=self._myself.hostname, age_s=self._age_s(), asks=asks
        )
        self._transport.publish(self._topic, encode_message(present))

    def _age_s(self) -> float:
        return max(0.0, self._clock() - self._began_at)

    def _take(self, event: Event | None) -> None:
        """Answer a server that asks; enter one that this server gives way to."""
        if isinstance(event, Connected) and not self._is_lost():
            self._say(asks=True)  # a broker that was divided or is another one may have brought a server with it
        if not isinstance(event, Message):
            return
        try:
            other = decode_message(event.payload, ServerPresent) if event.payload else None
        except ProtocolError as error:
            _LOG.warning("ignored a message on %s: %s", event.topic, error)
            return
        if other is None or other.server_id == self._myself.server_id:
            return
        if self._is_lost():
            return
        if other.asks:
            self._say(asks=False)
        self._name(other)

    def _name(self, other: ServerPresent) -> None:
        me = self._myself
        they = f"fleet {me.fleet} has two servers: this one on {me.hostname} and another one on {other.hostname}"
        if gives_way(me.server_id, self._age_s(), other):
            self._found = JobError(
                f"{they}, which has run for {other.age_s:.0f} s; this one gives way",
                "stop the other one first, or start this one with another --fleet",
            )
        elif other.server_id not in self._named:
            self._named.add(other.server_id)
            _LOG.error("%s, which is the younger one and has to give way; give each fleet one server", they)
