"""How a session's messages travel: signed and checked where the fleet has keys, as they are where it has none."""

from __future__ import annotations

import functools
import itertools
import time
from typing import TYPE_CHECKING, Literal, Protocol

from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Refused, Verifier

if TYPE_CHECKING:
    from edge_runtime.signing.keys import Keys, PrivateKey
    from server.swarm.counts import Counts

Role = Literal["message", "will"]


class Protection(Protocol):
    """Wraps what a session says, and opens what it hears."""

    def seal(self, topic: str, body: bytes, role: Role = "message") -> bytes:
        """Return what is published for a message."""

    def open(self, topic: str, payload: bytes) -> tuple[str, bytes] | None:
        """Return the kind and the body of a message that arrived; None: it is not believed."""


class Plain:
    """A fleet without keys. See Protection.

    Args:
        fleet: name of the fleet.
    """

    def __init__(self, fleet: str) -> None:
        self._hello = hello_topic(fleet)

    def seal(self, _topic: str, body: bytes, _role: Role = "message") -> bytes:
        """See Protection."""
        return body

    def open(self, topic: str, payload: bytes) -> tuple[str, bytes] | None:
        """See Protection."""
        return ("hello" if topic == self._hello else topic.split("/", 4)[-1]), payload


class Signing:
    """A fleet whose messages are signed. See Protection.

    The numbers of the messages begin at the clock's milliseconds, so that those of a later start are higher.

    Args:
        name: the session's device.
        fleet: name of the fleet.
        boot_id: names this start.
        key: the device's.
        keys: the server's.
        counts: is told the time that it takes.
    """

    def __init__(self, name: str, fleet: str, boot_id: str, key: PrivateKey, keys: Keys, counts: Counts) -> None:
        numbers = itertools.count(time.time_ns() // 1_000_000)
        self._signer = Signer(name, fleet, boot_id, key, functools.partial(next, numbers))
        self._verifier = Verifier(name, fleet, boot_id, keys)
        self._counts = counts

    def seal(self, topic: str, body: bytes, role: Role = "message") -> bytes:
        """See Protection."""
        began = time.thread_time()
        answers = None if role == "will" else self._verifier.session_of(SERVER)
        sealed = self._signer.seal(topic, body, answers, role)
        self._counts.sign_s += time.thread_time() - began
        return sealed

    def open(self, topic: str, payload: bytes) -> tuple[str, bytes] | None:
        """See Protection."""
        counts, began = self._counts, time.thread_time()
        result = self._verifier.check(topic, payload)
        counts.check_s, counts.checked = counts.check_s + time.thread_time() - began, counts.checked + 1
        return None if isinstance(result, Refused) else (result.route.kind, result.body)
