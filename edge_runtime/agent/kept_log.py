"""The last lines of the device's public log, in memory and on disk: what came before a crash is there after it.

::

    state_dir/
      log.jsonl     the last lines, one JSON object a line; a line that a power cut tore is dropped
      running       there while the process runs; a start that finds it follows an unclean end
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_runtime.agent.public_log import public_line
from edge_runtime.errors import CoveyError
from edge_runtime.files.atomic import write_atomically
from edge_runtime.protocol.side_messages import MOST_LINES, LogLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LOG_FILE = "log.jsonl"
RUNNING_FILE = "running"
_MOST_IN_FILE = 4 * MOST_LINES
"""Lines after which the file is written anew with the last MOST_LINES."""
_MOST_BYTES = 2 * 1024 * 1024
"""Bytes of the file that are read at most: Covey writes less."""


class Log(Protocol):
    """The public log, as its sender reads it."""

    @property
    def before_crash(self) -> Sequence[LogLine]:
        """The last lines of the process before, if it did not end properly; else none."""

    def lines(self) -> list[LogLine]:
        """Return the last lines, at most MOST_LINES."""


class KeptLog(logging.Handler):
    """A logging handler that keeps the last public lines.

    It never raises and never logs: where the disk is full, the lines are in memory only.

    Args:
        folder: the device's state directory.
        clock: returns seconds since 1970.

    Attributes:
        before_crash: see Log.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(logging.INFO)
        self._path, self._marker, self._clock = folder / LOG_FILE, folder / RUNNING_FILE, clock
        self._home = _home()
        before = _read(self._path)
        self._kept: collections.deque[LogLine] = collections.deque(before, MOST_LINES)
        self._next = before[-1].number + 1 if before else 0
        self._in_file = _MOST_IN_FILE  # so that the first line writes the file anew: its end may be torn
        self.before_crash: Sequence[LogLine] = before if self._marker.exists() else []

    def begin(self) -> None:
        """Enter that the process runs."""
        with contextlib.suppress(OSError):
            self._marker.touch()

    def end(self) -> None:
        """Enter that the process ends properly."""
        with contextlib.suppress(OSError):
            self._marker.unlink(missing_ok=True)

    def lines(self) -> list[LogLine]:
        """See Log."""
        with self._held():
            return list(self._kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's public line; called with the handler's lock held."""
        text = public_line(record, self._home)
        if text is None:
            return
        line = LogLine(self._next, max(0.0, self._clock()), record.levelname[:20], text)
        self._next += 1
        self._kept.append(line)
        with contextlib.suppress(OSError, CoveyError):
            self._write(line)

    def _write(self, line: LogLine) -> None:
        if self._in_file >= _MOST_IN_FILE:
            write_atomically(self._path, b"".join(_encoded(kept) for kept in self._kept))
            self._in_file = len(self._kept)
            return
        with self._path.open("ab") as file:
            file.write(_encoded(line))
        self._in_file += 1

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


@contextlib.contextmanager
def keeping_log(folder: Path) -> Iterator[KeptLog]:
    """Keep Covey's log until the block ends; a block that ends with an error counts as an unclean end."""
    kept = KeptLog(folder)
    kept.begin()
    logger = logging.getLogger("edge_runtime")
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    try:
        yield kept
    except KeyboardInterrupt:
        kept.end()
        raise
    except Exception as error:
        last = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "the process ends: %s", (error,), None)
        kept.handle(last)  # the command itself prints it for its user
        raise
    else:
        kept.end()
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)


def _home() -> str | None:
    try:
        return str(Path.home())
    except RuntimeError:  # a user without a home
        return None


def _encoded(line: LogLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _read(path: Path) -> list[LogLine]:
    """Return the last lines of a file; what is no line of a log is dropped."""
    try:
        with path.open("rb") as file:
            pieces = file.read(_MOST_BYTES).split(b"\n")
    except OSError:
        return []
    found: list[LogLine] = []
    for piece in pieces[:-1]:  # what follows the last line break was torn, or is nothing
        try:
            line = msgspec.json.decode(piece, type=LogLine)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            continue
        if not found or line.number > found[-1].number:
            found.append(line)
    return found[-MOST_LINES:]
