"""What a device tells the launcher that has started it: its stage, that its main loop turns, and its last error.

The launcher gives it one end of a pipe, so that nothing is written to a card for it. Each line is a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PIPE_VARIABLE = "COVEY_HEALTH_FD"
STAGES = ("started", "connecting", "serving")
Stage = Literal["started", "connecting", "serving"]
"""``started``: it has read configuration and state; ``connecting``: it waits for the broker; ``serving``."""
_BEAT_S = 2.0
_LONGEST_ERROR = 600


class Heartbeat:
    """The device's end of the pipe.

    It never raises: a device whose launcher has died is ended by the kernel anyway.

    Args:
        descriptor: the pipe; None: no launcher has started this process, and nothing is told.
        clock: a steady clock, in seconds.
    """

    def __init__(self, descriptor: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor, self._clock = descriptor, clock
        self._told_at: float | None = None
        if descriptor is not None:
            try:
                os.set_inheritable(descriptor, False)  # the device's own children are no sign of its life
                os.set_blocking(descriptor, False)
            except OSError:
                self._descriptor = None

    def reach(self, stage: Stage) -> None:
        """Tell that a stage is reached."""
        self._tell({"stage": stage})

    def beat(self) -> None:
        """Tell that the main loop turns; call it as often as it does."""
        now = self._clock()
        if self._told_at is None or now - self._told_at >= _BEAT_S:
            self._told_at = now
            self._tell({"beat": True})

    def fail(self, public: str) -> None:
        """Tell why this process ends.

        Args:
            public: the public text of the error: it becomes the reason that the device's log tells the server.
        """
        self._tell({"error": public.partition("\n")[0][:_LONGEST_ERROR]})

    def _tell(self, line: dict[str, object]) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a full pipe has enough signs of life in it
                os.write(self._descriptor, json.dumps(line).encode() + b"\n")


def heartbeat_of(environment: Mapping[str, str]) -> Heartbeat:
    """Return the heartbeat of this process, which tells nobody where no launcher has started it."""
    try:
        return Heartbeat(int(environment[PIPE_VARIABLE]))
    except (KeyError, ValueError):
        return Heartbeat(None)
