"""Shows on stderr how far long work with bytes is: share, rate and time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_EVERY_S, _LINES = 0.5, 10
"""How often a line is written to a terminal, in seconds, and how many are written to a file."""


class ByteProgress:
    """A line on stderr that says how far work is.

    Args:
        what: what is done, as ``unpacking``.
        out: where it is shown.
        clock: returns monotonic seconds.
    """

    def __init__(self, what: str = "", out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._out, self._clock = what, out or sys.stderr, clock
        self._begin(what)

    def _begin(self, what: str) -> None:
        self._what = what
        self._began_at = self._clock()
        self._shown_at, self._lines = self._began_at, 0

    def __call__(self, done_bytes: int, all_bytes: int) -> None:
        """Show how far it is, if it is time to."""
        now, lines = self._clock(), _LINES * done_bytes // max(1, all_bytes)
        is_end = done_bytes >= all_bytes
        if self._out.isatty():
            if now - self._shown_at < _EVERY_S and not is_end:
                return
            end = "\n" if is_end else ""
            self._out.write(f"\r\033[K{self._line(now, done_bytes, all_bytes)}{end}")
        else:
            if lines <= self._lines:
                return
            self._out.write(self._line(now, done_bytes, all_bytes) + "\n")
        self._out.flush()
        self._shown_at, self._lines = now, lines

    def named(self, what: str, done_bytes: int, all_bytes: int) -> None:
        """Show how far one of several pieces of work is; another name begins a new one."""
        if what != self._what:
            self._begin(what)
        self(done_bytes, all_bytes)

    def _line(self, now: float, done_bytes: int, all_bytes: int) -> str:
        seconds = now - self._began_at
        rate = done_bytes / seconds if seconds > 0 else 0.0
        left = f", {(all_bytes - done_bytes) / rate:.0f} s left" if rate > 0 and done_bytes < all_bytes else ""
        return f"{self._what}: {done_bytes / max(1, all_bytes):4.0%}, {rate / 1e6:.1f} MB/s{left}"
