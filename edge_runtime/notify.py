"""Tells systemd how a service is: that it is ready, what it is doing, that it still gets on, and that it ends.

Speaks the protocol of sd_notify(3): datagrams to the socket that ``NOTIFY_SOCKET`` names. Without it nothing is told.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_LOG = logging.getLogger(__name__)
SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_LOOKS = 4
"""Looks at the work within the time after which systemd ends the service."""


class Notifier:
    """The service's side of systemd's socket. It never raises: a service works without being watched.

    Args:
        address: the socket, as systemd names it; None: systemd did not start this process, and nothing is told.
        watchdog_s: seconds without a sign of life after which systemd ends the service; None: it is not watched.
        is_whole: whether the service ends with this process; not where a launcher starts another version then.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None, *, is_whole: bool = True) -> None:
        self._address, self.watchdog_s, self._is_whole = address, watchdog_s, is_whole
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        """Whether anybody is told."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Tell that the service has started, and what it is doing."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Tell what the service is doing, in one line: ``systemctl status`` shows it."""
        self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """Tell that the service gets on."""
        self._tell("WATCHDOG=1")

    def watch(self, work: Callable[[], float] | None = None) -> None:
        """Tell from now on that the service gets on, for as long as the work of the calling thread does.

        A thread of its own looks at it: a step on a small board may take minutes, and so may a download. What hangs
        uses no processor time at all; it is ended after ``watchdog_s``. A loop without an end is not found out.

        Args:
            work: a measure of the work that grows while it gets on; None: the processor time of the calling thread.
        """
        if self._address is None or self.watchdog_s is None or self._thread is not None:
            return
        if work is None:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            work = lambda: time.clock_gettime(clock)  # noqa: E731
        self.alive()
        self._thread = threading.Thread(target=self._watch, args=(work, self.watchdog_s), name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self, work: Callable[[], float], watchdog_s: float) -> None:
        last = work()
        while not self._stop.wait(watchdog_s / _LOOKS):
            now = work()
            if now != last:
                self.alive()
            else:
                _LOG.warning("the main thread has done nothing for %.0f s", watchdog_s / _LOOKS)
            last = now

    def stopping(self) -> None:
        """Tell that the service ends, and watch it no more: the rest has a limit of its own (TimeoutStopSec)."""
        if self._is_whole:  # else systemd would end the launcher after it
            self._tell("STOPPING=1")
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        path = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), path)


def notifier_of(environment: MutableMapping[str, str], pid: int, *, may_speak_for: bool = False) -> Notifier:
    """Return the notifier of this process, and take what systemd has said out of its environment.

    Its children must not speak in its name.

    Args:
        environment: the process's environment.
        pid: the process.
        may_speak_for: whether this process is watched although systemd has started its parent: the launcher.
    """
    address = environment.pop(SOCKET, None)
    period, watched = environment.pop(WATCHDOG, ""), environment.pop(WATCHDOG_PID, "")
    if address is None or address[:1] not in ("/", "@"):
        return Notifier(None)
    is_watched = period.isdigit() and int(period) > 0 and (may_speak_for or watched in ("", str(pid)))
    return Notifier(address, int(period) / 1e6 if is_watched else None, is_whole=not may_speak_for)
