"""Signed members of a fleet for tests: keys, signers, verifiers, and transports on a hub."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edge_runtime.network.transport import Transport
from edge_runtime.protocol.signed import SERVER
from edge_runtime.signing.keys import KeyBook, PrivateKey
from edge_runtime.signing.marks import HelloFile
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.transport import SignedTransport
from edge_runtime.signing.verifier import Accepted, Reason, Verifier

FLEET = "default"


def key_of(name: str, generation: int = 0) -> PrivateKey:
    """A key for each name and generation; the same in one run of the tests."""
    return _key_of(name, generation)


@functools.cache
def _key_of(_name: str, _generation: int) -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def book_of(*names: str) -> KeyBook:
    book = KeyBook()
    for name in names:
        book.add(name, key_of(name).public_key())
    return book


@dataclass
class Fleet:
    """Members that share a book of keys; a member's numbers go on over its restarts."""

    book: KeyBook
    numbers: dict[str, Callable[[], int]] = field(default_factory=dict)

    def signer(self, name: str, session: str, fleet: str = FLEET) -> Signer:
        take = self.numbers.setdefault(name, functools.partial(next, itertools.count(1)))
        return Signer(name, fleet, session, key_of(name), take)

    def verifier(self, name: str, session: str, folder: Path | None = None) -> Verifier:
        file = None if folder is None else HelloFile(folder / f"{name}-hello.json")
        return Verifier(name, FLEET, session, self.book, file)

    def transport(
        self,
        inner: Transport,
        name: str,
        session: str,
        folder: Path | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> SignedTransport:
        """Return a member's signed transport; its clock stands still by default."""
        return SignedTransport(inner, self.signer(name, session), self.verifier(name, session, folder), clock)


def fleet_of(*devices: str) -> Fleet:
    """Return a fleet of the server and devices."""
    return Fleet(book_of(SERVER, *devices))


def state_of(verifier: Verifier) -> Any:
    return copy.deepcopy((verifier._marks, verifier._sessions))


def reason_of(verifier: Verifier, topic: str, payload: bytes) -> Reason | None:
    """Return why a message is refused, None where it is not; what is refused changes nothing."""
    before = state_of(verifier)
    result = verifier.check(topic, payload)
    if isinstance(result, Accepted):
        return None
    assert state_of(verifier) == before
    return result.reason
