"""Makes processes slow for real: each process group runs for a part of every period, and is stopped for the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PERIOD_S = 0.25


class DutyCycle:
    """Lets each process group run for 1 / slowness of every period, by SIGSTOP and SIGCONT from a thread."""

    def __init__(self) -> None:
        self._groups: dict[int, float] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, command: list[str], log: Path, slowness: float) -> subprocess.Popen[bytes]:
        """Start ``covey-edge`` as a process group of its own that is ``slowness`` times as slow as this machine."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_runtime.cli", *command], stdout=file, stderr=file, start_new_session=True
            )
        if slowness > 1:
            with self._lock:
                self._groups[process.pid] = slowness
        return process

    def release(self, group: int) -> None:
        """Let a process group run freely again."""
        with self._lock:
            if self._groups.pop(group, None) is not None:
                _signal(group, signal.SIGCONT)

    def close(self) -> None:
        """Let all process groups run freely, and end the thread."""
        self._done.set()
        self._thread.join()
        for group in list(self._groups):
            self.release(group)

    def _run(self) -> None:
        while not self._done.is_set():
            with self._lock:
                groups = sorted(self._groups.items(), key=lambda entry: -entry[1])
                for group, _ in groups:
                    _signal(group, signal.SIGCONT)
            begin = time.monotonic()
            for group, slowness in groups:  # the slowest group is stopped first
                self._done.wait(max(0.0, begin + PERIOD_S / slowness - time.monotonic()))
                with self._lock:
                    if group in self._groups:
                        _signal(group, signal.SIGSTOP)
            self._done.wait(max(0.0, begin + PERIOD_S - time.monotonic()))


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
