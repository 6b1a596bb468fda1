"""Blobs that are being copied from a bucket for somebody who cannot wait long: one copy at a time of each blob.

The copies are made in threads of their own, so that nobody who asks is held up by a bucket that does not answer.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Found = Path | StorageError | None
"""The copy; why there is none yet; or None: the bucket has no such blob."""
MOST_COPIES = 4
"""Copies that are made at once; each has a part of a blob in memory."""


def found_now(found: Found) -> Future[Found]:
    """Return an answer that is there already."""
    answer: Future[Found] = Future()
    answer.set_result(found)
    return answer


class Fetches:
    """Makes copies in the background.

    Args:
        copied: makes one; returns its path, None where there is no such blob.
        most: how many are made at once.
    """

    def __init__(self, copied: Callable[[str], Path | None], most: int = MOST_COPIES) -> None:
        self._copied, self._most = copied, most
        self._at_work: dict[str, Future[Found]] = {}
        self._lock = threading.Lock()

    def begin(self, sha256: str) -> Future[Found] | None:
        """Begin to copy a blob, or join who does; return what will come of it, None where too many are at work."""
        with self._lock:
            if sha256 in self._at_work:
                return self._at_work[sha256]
            if len(self._at_work) >= self._most:
                return None
            answer: Future[Found] = Future()
            answer.set_running_or_notify_cancel()  # nobody who stops to wait ends it for the others
            self._at_work[sha256] = answer
        threading.Thread(target=self._fetch, args=(sha256, answer), name="blob-copy", daemon=True).start()
        return answer

    def _fetch(self, sha256: str, answer: Future[Found]) -> None:
        try:
            found: Found = self._copied(sha256)
        except StorageError as error:
            found = error
        except BaseException as fault:  # noqa: BLE001 whoever waits is told, whatever it is
            self._forget(sha256)
            answer.set_exception(fault)
            return
        self._forget(sha256)
        answer.set_result(found)

    def _forget(self, sha256: str) -> None:
        with self._lock:
            del self._at_work[sha256]


class OneEach:
    """Lets one thread at a time work on each name."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until nobody else works on a name, and keep others from it in the block."""
        with self._lock:
            own, waiting = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = own, waiting + 1
        try:
            with own:
                yield
        finally:
            with self._lock:
                own, waiting = self._locks.pop(name)
                if waiting > 1:
                    self._locks[name] = own, waiting - 1
