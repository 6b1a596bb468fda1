"""Joins Ray again after it was lost: for two minutes, with longer and longer pauses, saying so."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError, NetworkError
from server.errors import ToldToStopError
from server.ray_work.driver_process import DriverProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.ray_work.driver_process import DriverLostError
    from server.ray_work.options import RayOptions

PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Seconds before each attempt: a cluster that is started again by hand or by systemd is there within a minute."""
_LOOK_S = 0.5
_LOG = logging.getLogger(__name__)


class JoiningAgain:
    """Gets new drivers for the threads of a command, one at a time.

    Args:
        options: where the workers are.
        should_stop: asked while it waits.
    """

    def __init__(self, options: RayOptions, should_stop: Callable[[], bool]) -> None:
        self._options, self._should_stop = options, should_stop
        self._lock = threading.Lock()
        self._in_vain: list[NetworkError] = []

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one thread in; another one that waited while the attempts of the first were in vain fails as it did.

        Raises:
            NetworkError: the first thread's error.
        """
        before = len(self._in_vain)
        with self._lock:
            if len(self._in_vain) > before:
                raise self._in_vain[-1]
            yield

    def driver(self, lost: DriverLostError) -> DriverProcess:
        """Join Ray again.

        Args:
            lost: how it was lost.

        Raises:
            NetworkError: it could not be joined; what was asked can be asked again.
            ToldToStopError: told to stop meanwhile.
        """
        _LOG.warning("%s; Covey joins it again, and tries for %d s", lost.what, sum(PAUSES_S))
        last: CoveyError = lost
        for pause_s in PAUSES_S:
            self._pause(pause_s)
            try:
                driver = DriverProcess(self._options, self._should_stop)
            except ToldToStopError:
                raise
            except CoveyError as error:
                last = error
                _LOG.info("not yet: %s", error.what)
            else:
                _LOG.warning("%s was joined again, and its work goes on", self._options.name)
                return driver
        failed = NetworkError(
            f"{lost.what}; it could not be joined again in {len(PAUSES_S)} attempts: {last.what}",
            "ray status shows its nodes; start it again (ray start --head, and ray start --address HOST:PORT on the "
            "other machines), then covey job resume, or the same command again: what was finished is kept",
        )
        self._in_vain.append(failed)
        raise failed

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._should_stop():
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK_S))
        raise ToldToStopError("told to stop while Ray is joined again", "run the command again")
