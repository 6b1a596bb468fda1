"""Instant devices whose messages are signed, and a server that signs and checks: what signatures add to a round."""

from __future__ import annotations

import functools
import itertools
import time
from typing import TYPE_CHECKING, cast

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.workers.instant_fleet import FLEET, InstantFleet
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import device_of, hello_topic, topic_for
from edge_runtime.signing.keys import KeyBook
from edge_runtime.signing.sequence import SEQUENCE_FILE, SequenceStore
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.transport import SignedTransport
from edge_runtime.signing.verifier import Refused, Verifier

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from edge_runtime.network.in_process import Hub
    from edge_runtime.protocol.messages import AnyMessage
    from edge_runtime.protocol.topics import Kind
    from edge_runtime.signing.verifier import Accepted

_SESSION = "bench"


class TimedSigner(Signer):
    """A signer that adds up its time; ``seconds`` and ``calls`` since the start."""

    seconds, calls = 0.0, 0

    def seal(
        self, topic: str, body: bytes, answers: str | None = None, role: Literal["message", "will"] = "message"
    ) -> bytes:
        """See Signer."""
        began = time.perf_counter()
        sealed = super().seal(topic, body, answers, role)
        self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1
        return sealed


class TimedVerifier(Verifier):
    """A verifier that adds up its time; ``seconds`` and ``calls`` since the start."""

    seconds, calls = 0.0, 0

    def check(self, topic: str, payload: bytes) -> Accepted | Refused:
        """See Verifier."""
        began = time.perf_counter()
        result = super().check(topic, payload)
        self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1
        return result


class SignedFleet(InstantFleet):
    """Devices that answer every message at once, with signatures; see InstantFleet.

    Args:
        devices: number of devices.
        folder: holds the file of the server's message numbers.

    Attributes:
        signer: the server's.
        verifier: the server's.
    """

    def __init__(self, devices: int, folder: Path) -> None:
        super().__init__(devices)
        self._broker = self.hub
        self.hub = cast("Hub", self)  # the server joins by it
        names = [f"device-{index:04}" for index in range(devices)]
        keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (SERVER, *names)}
        book = KeyBook()
        for name, key in keys.items():
            book.add(name, key.public_key())
        store = SequenceStore(folder / SEQUENCE_FILE)
        self.signer = TimedSigner(SERVER, FLEET, _SESSION, keys[SERVER], store.take)
        self.verifier = TimedVerifier(SERVER, FLEET, _SESSION, book)
        self._signers = {
            name: Signer(name, FLEET, _SESSION, keys[name], functools.partial(next, itertools.count()))
            for name in names
        }
        self._verifiers = {name: Verifier(name, FLEET, _SESSION, book) for name in names}

    def join(self) -> SignedTransport:
        """Return the server's connection."""
        return SignedTransport(self._broker.join(), self.signer, self.verifier)

    def turn(self) -> None:
        """See InstantFleet; each device checks what it gets, but one checks the hello for all."""
        while (event := self._transport.receive(0)) is not None:
            if not isinstance(event, Message):
                continue
            is_hello = event.topic == hello_topic(FLEET)
            name = next(iter(self._verifiers)) if is_hello else device_of(event.topic)
            result = self._verifiers[name].check(event.topic, event.payload)
            if isinstance(result, Refused):
                raise RuntimeError(f"a message of the server was refused: {result}")  # noqa: TRY004 no wrong type
            self._answer(Message(event.topic, result.body))

    def _send(self, name: str, kind: Kind, message: AnyMessage) -> None:
        topic = topic_for(FLEET, name, kind)
        sealed = self._signers[name].seal(topic, encode_message(message), _SESSION)
        self._broker.publish(topic, sealed, retain=False)
