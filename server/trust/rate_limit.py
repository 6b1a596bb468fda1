"""How often an address may ask to join: a bucket of tokens for each address, and one for all of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_ADDRESSES = 4096


@dataclass(frozen=True)
class Rate:
    """Requests: ``burst`` at once, and ``per_s`` more each second."""

    burst: float
    per_s: float


EACH = Rate(100, 10.0)
"""Of one address, behind which many devices may be; each asks twice, and every 5 s while it waits for approval."""
ALL = Rate(400, 100.0)
"""Of all addresses; a check of a token and a signature take about a millisecond."""
GUESS_COST = 50.0
"""Requests that a wrong secret counts for: two guesses at once, and then one in five seconds."""


@dataclass
class _Bucket:
    left: float
    at_s: float

    def take(self, rate: Rate, now_s: float) -> float:
        """Take one request; return 0, or the seconds until there is one."""
        self.left = min(rate.burst, self.left + max(0.0, now_s - self.at_s) * rate.per_s)
        self.at_s = now_s
        if self.left < 1:
            return (1 - self.left) / rate.per_s
        self.left -= 1
        return 0.0


class RateLimit:
    """Counts requests by address; used in one thread. The oldest addresses are forgotten when there are many.

    Args:
        clock_s: a clock that never goes back.
        each: what one address may.
        everybody: what all of them together may.
    """

    def __init__(self, clock_s: Callable[[], float], each: Rate = EACH, everybody: Rate = ALL) -> None:
        self._clock_s, self._each, self._everybody = clock_s, each, everybody
        self._all = _Bucket(everybody.burst, clock_s())
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, address: str) -> float:
        """Count a request of an address; return 0 where it may go on, else the seconds until it may."""
        now_s = self._clock_s()
        own = self._bucket(address, now_s).take(self._each, now_s)
        return own if own > 0 else self._all.take(self._everybody, now_s)

    def blocked_s(self, address: str) -> float:
        """Return the seconds until an address may ask again; 0: now. Counts nothing."""
        found = self._buckets.get(address)
        if found is None:
            return 0.0
        left = found.left + max(0.0, self._clock_s() - found.at_s) * self._each.per_s
        return max(0.0, (1 - left) / self._each.per_s)

    def guessed(self, address: str) -> None:
        """Count a wrong secret."""
        self._bucket(address, self._clock_s()).left -= GUESS_COST - 1

    def _bucket(self, address: str, now_s: float) -> _Bucket:
        found = self._buckets.setdefault(address, _Bucket(self._each.burst, now_s))
        self._buckets.move_to_end(address)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return found
