"""A transport around any other: what is published gets a signature, and only what is believed is received."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError, ProtocolError
from edge_runtime.network.transport import Connected, GivenUp, Message, Will, WrappedTransport
from edge_runtime.protocol.signed import SERVER, decode_envelope, route_of
from edge_runtime.signing.refusals import Refusals
from edge_runtime.signing.verifier import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.network.transport import Event, Transport
    from edge_runtime.signing.signer import Signer
    from edge_runtime.signing.verifier import Verifier

_LOG = logging.getLogger(__name__)
HELLO_AGAIN_S = 2.0
"""Seconds between two hellos that are said because devices answer an older session."""
_HELLO_LATEST_S = 60.0
"""Seconds after which a hello that is due is said although messages wait."""
_MOST_REFUSED = 1000
"""Refused messages after which receive returns without one, so that a flood does not stop its caller."""


class SignedTransport(WrappedTransport):
    """Signs and checks messages; see Transport. Agent and coordinator know nothing of it.

    A device that answers another session than the server's has not heard the last hello, or its message is an old one:
    the server then says the same hello again, at most every HELLO_AGAIN_S, and where no message waits: what a broker
    retains of a large fleet is read long before the answers to the hello.

    Publishing is safe from several threads; receiving belongs to one.

    Args:
        inner: the connection to the broker.
        signer: signs as this member.
        verifier: checks for the same member, with the same session.
        clock: returns monotonic seconds.

    Attributes:
        take_outdated: called, in the thread that receives, with topic and message where a member has signed a message
            for this session and another one after it: it changes nothing, but its speaker may run twice.
    """

    def __init__(
        self,
        inner: Transport,
        signer: Signer,
        verifier: Verifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._signer, self._verifier, self._clock = signer, verifier, clock
        self._refusals = Refusals(clock)
        self._lock = threading.Lock()  # messages are published in the order of their numbers
        self.take_outdated: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self._hello: tuple[str, bytes] | None = None
        self._hello_at = 0.0
        self._unheard: set[str] = set()  # devices that have answered another session, and not this one

    @property
    def refused(self) -> Mapping[tuple[str, Reason], int]:
        """How many messages were refused since the start, by device and reason. Safe to read from other threads."""
        return self._refusals.counts

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sign a message and send it; see Transport.

        Raises:
            ProtocolError: it is too large, or this member does not speak on the topic.
            StorageError: no sequence number can be reserved on the disk.
        """
        route = route_of(self._signer.fleet, topic)
        with self._lock:
            if route is None:
                self._inner.publish(topic, payload, retain=retain)
                return
            self._inner.publish(topic, self._seal(topic, payload), retain=retain)
            if route.kind == "hello":
                self._hello, self._hello_at = (topic, payload), self._clock()

    def seal(self, topic: str, payload: bytes) -> bytes:
        """Return a message signed, for whoever sends it past this transport, as the goodbye of a device is sent.

        Raises:
            ProtocolError, StorageError: see publish.
        """
        with self._lock:
            return self._seal(topic, payload)

    def _seal(self, topic: str, payload: bytes) -> bytes:
        route = route_of(self._signer.fleet, topic)
        if route is None or route.speaker != self._signer.speaker:
            raise ProtocolError(f"{self._signer.speaker} does not speak on {topic}", "this is a fault of Covey")
        answers = None if route.listener is None else self._verifier.session_of(route.listener)
        return self._signer.seal(topic, payload, answers)

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event that is no message, or a message that is believed; see Transport.

        None is also returned after many refused messages, before ``timeout_s`` is over.
        """
        until = None if timeout_s is None else self._clock() + timeout_s
        for _ in range(_MOST_REFUSED):
            event = self._inner.receive(0)
            if event is None or self._clock() - self._hello_at >= _HELLO_LATEST_S:
                self._say_hello_again()
            if event is None:
                event = self._inner.receive(None if until is None else max(0.0, until - self._clock()))
            if event is None or isinstance(event, Connected):
                return event
            if isinstance(event, GivenUp):
                return self._opened(event)
            believed = self._believed(event)
            if believed is not None:
                return believed
        return None

    def forget(self, speaker: str) -> None:
        """Forget how far a speaker was heard; see Verifier.forget. For the thread that receives."""
        self._verifier.forget(speaker)

    def _opened(self, event: GivenUp) -> GivenUp:
        """Return an own message that the broker does not take, as it was given to publish."""
        with contextlib.suppress(ProtocolError):  # it was not signed
            return GivenUp(event.topic, decode_envelope(event.payload).body, event.finding, event.remedy)
        return event

    def _believed(self, message: Message) -> Message | None:
        if not message.payload:
            return None  # a member asks its broker whether it may publish (network/access.py)
        with contextlib.suppress(ProtocolError):  # the verifier says what is wrong with the topic
            if route_of(self._signer.fleet, message.topic) is None:
                return message
        result = self._verifier.check(message.topic, message.payload)
        if not isinstance(result, Refused):
            self._unheard.discard(result.route.speaker)
            return Message(message.topic, result.body)
        self._refusals.enter(message.topic, result)
        if result.body is not None:
            self.take_outdated(message.topic, result.body)
        is_stale = result.reason is Reason.STALE and result.role == "message"
        if is_stale and result.route is not None and self._signer.speaker == SERVER:
            self._unheard.add(result.route.speaker)
        return None

    def _say_hello_again(self) -> None:
        if not self._unheard or self._hello is None or self._clock() - self._hello_at < HELLO_AGAIN_S:
            return
        self._unheard.clear()
        try:
            self.publish(*self._hello, retain=True)
        except CoveyError as error:
            _LOG.warning("cannot say hello again: %s", error)


def signed_will(will: Will, signer: Signer) -> Will:
    """Return a last will with its signature; make it before anything else is signed.

    Raises:
        StorageError: no sequence number can be reserved on the disk.
    """
    return Will(will.topic, signer.seal(will.topic, will.payload, role="will"))
