"""How much may be asked in a minute, and how a request that is too much is refused."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from edge_runtime.protocol.predictions import AGAIN_AFTER, SEND_FEWER

if TYPE_CHECKING:
    from collections.abc import Callable

_MINUTE_S = 60.0


class TooManyError(NetworkError):
    """More was asked than is answered in a minute; nothing of the request was done.

    Args:
        what: see CoveyError.
        retry_after_s: seconds after which the same request is taken; None: it never is, for it is too large.
    """

    def __init__(self, what: str, retry_after_s: float | None) -> None:
        if retry_after_s is None:
            super().__init__(what, SEND_FEWER)
        else:
            super().__init__(what, AGAIN_AFTER.format(math.ceil(retry_after_s)))
        self.retry_after_s = retry_after_s


class MinuteLimit:
    """A bucket that fills evenly and holds one minute's worth. Safe to use from several threads.

    Args:
        what: what is counted, as the error says it.
        per_minute: how many are allowed.
        clock: returns monotonic seconds.
    """

    def __init__(self, what: str, per_minute: int, clock: Callable[[], float]) -> None:
        self._what, self._most, self._clock = what, per_minute, clock
        self._left, self._looked_at = float(per_minute), clock()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take ``count`` out of the bucket.

        Raises:
            TooManyError: there are not so many in it; none was taken.
        """
        with self._lock:
            now = self._clock()
            rate = self._most / _MINUTE_S
            self._left = min(self._most, self._left + rate * (now - self._looked_at))
            self._looked_at = now
            if count > self._left:
                wait_s = None if count > self._most else (count - self._left) / rate
                raise TooManyError(f"{self._most} {self._what} a minute are taken here", wait_s)
            self._left -= count
