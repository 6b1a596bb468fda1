"""A device as the launcher's child: started from a slot, heard through a pipe, and never left without its launcher."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import system_error
from edge_runtime.update.heartbeat import PIPE_VARIABLE, STAGES
from edge_runtime.update.requests import ROOT_VARIABLE
from edge_runtime.update.rules import Signs
from edge_runtime.update.slots import slot_python

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_MOST_BYTES = 1 << 16
NOT_STARTED = 127
"""The exit code of a device that could not be started, as a shell gives it."""


def clean_environment() -> dict[str, str]:
    """Return the environment without what would make Python load another version than the slot's."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED}


class Device:
    """A running ``covey-edge``.

    Args:
        root: the folder of the slots.
        slot: the slot that it runs from.
        arguments: of ``covey-edge``.
        clock: a steady clock, in seconds.

    Attributes:
        signs: what it has told so far.
        error: the last error that it has told; empty: none.

    Raises:
        StorageError: no descriptors, no memory or no process is left.
    """

    def __init__(self, root: Path, slot: str, arguments: Sequence[str], clock: Callable[[], float]) -> None:
        self._clock, self._text = clock, b""
        self.signs, self.error = Signs("", clock()), ""
        try:
            self._pipe, far = os.pipe()
        except OSError as error:
            raise system_error(error) from error
        environment = clean_environment() | {PIPE_VARIABLE: str(far), ROOT_VARIABLE: str(root)}
        command = [str(slot_python(root, slot)), "-I", "-m", "edge_runtime.cli", *arguments]
        try:
            self._popen: subprocess.Popen[bytes] | None = subprocess.Popen(
                command,
                env=environment,
                cwd=root,  # the working directory of whoever starts the launcher may hold another Covey
                pass_fds=(far,),
                start_new_session=True,
                preexec_fn=ends_with_its_parent(),  # noqa: PLW1509 the launcher has one thread
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            self._popen = None
        except OSError as error:
            os.close(self._pipe)
            raise system_error(error) from error
        finally:
            os.close(far)

    def look(self, wait_s: float) -> int | None:
        """Hear what it has told, for at most ``wait_s``; return its exit code once it has ended, else None."""
        if self._popen is None:
            return NOT_STARTED
        ready = True
        if self._pipe >= 0:
            ready = bool(select.select([self._pipe], [], [], wait_s)[0])
            if ready:
                self._hear()
        if self._pipe < 0 or not ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._popen.wait(wait_s if self._pipe < 0 else 0)
        return None

    def _hear(self) -> None:
        data = os.read(self._pipe, _MOST_BYTES)
        if not data:  # its end is closed: the process has ended, or has no use for it
            os.close(self._pipe)
            self._pipe = -1
            return
        *lines, self._text = (self._text + data).split(b"\n")
        self._text = self._text[-_MOST_BYTES:]
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                self._take(json.loads(line))

    def _take(self, told: Any) -> None:  # noqa: ANN401 parsed JSON
        if not isinstance(told, dict):
            return
        now, signs = self._clock(), self.signs
        if told.get("stage") in STAGES:
            signs = replace(signs, stage=told["stage"])
            if signs.stage == "serving" and signs.served_at is None:
                signs = replace(signs, served_at=now)
        if "beat" in told and signs.served_at is not None:
            signs = replace(signs, beat_at=now)
        self.signs = signs
        self.error = str(told.get("error", self.error))

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended gets none."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def end(self, patience_s: float) -> int:
        """End it: SIGTERM, and SIGKILL to one that does not heed it in ``patience_s``; return its exit code."""
        self.tell(signal.SIGTERM)
        until = time.monotonic() + patience_s
        while (code := self.look(0.2)) is None:
            if time.monotonic() > until:
                self.tell(signal.SIGKILL)
        self.close()
        return code

    def close(self) -> None:
        """Close the pipe of a device that has ended."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def ask(root: Path, slot: str, arguments: Sequence[str], patience_s: float, stop: Callable[[], bool]) -> int | None:
    """Run a command of a slot's ``covey-edge`` to its end; return its exit code, None where it took too long."""
    command = [str(slot_python(root, slot)), "-I", "-m", "edge_runtime.cli", *arguments]
    try:
        popen = subprocess.Popen(
            command,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            preexec_fn=ends_with_its_parent(),  # noqa: PLW1509 the launcher has one thread
        )
    except OSError:
        return NOT_STARTED
    until = time.monotonic() + patience_s
    while time.monotonic() < until and not stop():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return popen.wait(0.5)
    popen.kill()
    popen.wait()
    return None


def ends_with_its_parent() -> Callable[[], None]:
    """Return what a child calls before it becomes its program: the kernel kills it when its parent's thread dies.

    So no second device of the same name runs beside that of the next launcher, and no pip writes on into a slot whose
    installer was killed. It is for processes of one thread.
    """
    library, parent = ctypes.CDLL(None), os.getpid()

    def before() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(NOT_STARTED)

    return before
