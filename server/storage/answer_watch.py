"""Watches a connection to a database: a statement that gets no answer ends it, and one that is idle is spoken over.

A database that hangs, and a proxy that takes bytes and passes none on, look alike to TCP: the other end is there and
says nothing. So whoever waits for an answer is watched by a thread, which shuts the connection's socket down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_LOOKS = 4
"""Looks within the time that an answer may take."""


class AnswerWatch:
    """Shuts a connection down that gives no answer for a while.

    Args:
        place: the database, for messages.
        limit_s: how long an answer may take, in seconds.
        late_s: after how many seconds the database counts as one that does not answer, and that is said.
        clock: monotonic seconds.
    """

    def __init__(self, place: str, limit_s: float, late_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._place, self._limit_s, self._late_s, self._clock = place, limit_s, late_s, clock
        self._waiting: tuple[int, float] | None = None  # the socket, and since when an answer is waited for
        self._said = False
        self._changed, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_late(self) -> bool:
        """Whether a statement has had no answer for late_s."""
        waiting = self._waiting
        return waiting is not None and self._clock() - waiting[1] >= self._late_s

    def begin(self, descriptor: int) -> None:
        """Watch from now on that an answer comes; one at a time, until ``end``.

        Args:
            descriptor: of the connection's socket, which stays open until then.
        """
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._watch, name="ledger-answers", daemon=True)
            self._thread.start()
        with self._changed:
            self._waiting, self._said = (descriptor, self._clock()), False

    def end(self) -> None:
        """Watch no more: the answer is there, or the connection is lost."""
        with self._changed:
            self._waiting = None

    def close(self) -> None:
        """Watch no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._late_s, self._limit_s) / _LOOKS):
            with self._changed:  # the descriptor is this connection's as long as its statement waits
                if self._waiting is None:
                    continue
                descriptor, since = self._waiting
                late_s = self._clock() - since
                if late_s >= self._late_s and not self._said:
                    self._said = True
                    _LOG.warning("the ledger %s has not answered for %.0f s; waiting for it", self._place, late_s)
                if late_s >= self._limit_s:
                    self._waiting = descriptor, self._clock()
                    _LOG.warning("the ledger %s does not answer: its connection is given up", self._place)
                    _shut(descriptor)


def _shut(descriptor: int) -> None:
    """End a connection in both directions, so that whoever waits for its bytes goes on; the descriptor stays open."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
        own.shutdown(socket.SHUT_RDWR)


class Heartbeat:
    """Does something again and again in a thread until it is closed.

    Args:
        beat: what is done; what it raises ends the thread.
        every_s: seconds between.
    """

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s = beat, every_s
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="ledger-heartbeat", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._beat()
