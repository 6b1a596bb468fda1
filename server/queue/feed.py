"""The last events of each job, for those who watch; memory is bounded, and a slow watcher misses the oldest."""

from __future__ import annotations

import collections
import itertools
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.events import Event

_KEPT = 2000
"""Events kept of one job."""


class Feed:
    """Events by job. Safe to use from several threads.

    Args:
        kept: number of events that are kept of each job.
        first: number of the first event. A server's next start gives a larger one, so that whoever follows a job goes
            on behind the last event that it saw.
    """

    def __init__(self, kept: int = _KEPT, first: int = 1) -> None:
        self._kept = kept
        self._events: dict[str, collections.deque[tuple[int, Event]]] = {}
        self._numbers = itertools.count(first)
        self._lock = threading.Lock()

    def put(self, job: str, event: Event) -> None:
        """Add an event of a job."""
        with self._lock:
            of_job = self._events.setdefault(job, collections.deque(maxlen=self._kept))
            of_job.append((next(self._numbers), event))

    def since(self, job: str, number: int) -> list[tuple[int, Event]]:
        """Return a job's kept events after an event's number (0: all), each with its number, oldest first."""
        with self._lock:
            return [(at, event) for at, event in self._events.get(job, ()) if at > number]

    def forget(self, job: str) -> None:
        """Forget a job's events."""
        with self._lock:
            self._events.pop(job, None)
