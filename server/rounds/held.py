"""Holds back what is said until the ledger is on the disk, so that many messages share one wait for the disk."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from edge_runtime.network.transport import WrappedTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from edge_runtime.network.transport import Transport


class HeldTransport(WrappedTransport):
    """A transport around another one, whose messages may be held back; see Transport.

    What other threads publish meanwhile is not held back: it rests on nothing that the block writes.

    Args:
        inner: the connection to the broker.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._held: list[tuple[str, bytes, bool]] = []
        self._holder: int | None = None

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send a message, or hold it back until the block of ``holding`` in this thread ends."""
        if self._holder == threading.get_ident():
            self._held.append((topic, payload, retain))
        else:
            self._inner.publish(topic, payload, retain=retain)

    @contextlib.contextmanager
    def holding(self, on_disk: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Hold back what this thread publishes until ``on_disk`` around the block has ended; one block at a time.

        Where the block or ``on_disk`` raises, nothing of it is said: devices send again what was not answered.
        """
        self._holder = threading.get_ident()
        try:
            with on_disk():
                yield
            held, self._held = self._held, []
        finally:
            self._holder, self._held = None, []
        for topic, payload, retain in held:
            self._inner.publish(topic, payload, retain=retain)
