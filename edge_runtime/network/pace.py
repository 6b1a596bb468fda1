"""The least speed of a transfer: one that trickles is broken off, as one that is silent is by its time limit."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class LeastSpeed:
    """What is expected of an answer, its headers included.

    Attributes:
        n_bytes: bytes that must come in each window.
        window_s: length of a window, in seconds; longer than the other side may be silent.
    """

    n_bytes: int
    window_s: float

    @property
    def words(self) -> str:
        """The limit, for messages."""
        return f"less than {self.n_bytes} bytes in {self.window_s:g} s"


class TooSlowError(OSError):
    """A transfer is slower than its least speed.

    Args:
        least: the least speed.
    """

    def __init__(self, least: LeastSpeed) -> None:
        super().__init__(f"it trickles: {least.words}")


class PacedReader(io.RawIOBase):
    """The bytes of a connection, as long as they come fast enough. The first byte may take its time.

    Args:
        inner: the connection's own reader.
        least: the least speed.
        clock: monotonic seconds.
    """

    def __init__(self, inner: io.RawIOBase, least: LeastSpeed, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._least, self._clock = inner, least, clock
        self._began: float | None = None
        self._came = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 whatever has bytes that can be written
        """Read once.

        Raises:
            TooSlowError: less came in a window than must.
        """
        n = cast("int | None", self._inner.readinto(buffer))
        now = self._clock()
        if self._began is None:
            self._began = now
        self._came += n or 0
        if now - self._began >= self._least.window_s:
            if n and self._came < self._least.n_bytes:
                raise TooSlowError(self._least)
            self._began, self._came = now, 0
        return n

    def close(self) -> None:
        """Close the connection's reader."""
        self._inner.close()
        super().close()
