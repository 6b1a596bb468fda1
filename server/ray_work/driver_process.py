"""A command's side of the driver: starts its process, asks it for pieces, and notices that it has ended."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import NetworkError
from server.errors import ToldToStopError, error_of
from server.ray_work.driver import run_driver
from server.ray_work.messages import Ask, Cancel, Drop, Ended, Keep, Ready
from server.ray_work.parcels import pack, receive, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.ray_work.options import RayOptions
    from server.ray_work.parcels import Parcel

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.5
_BEGINS_S = 600.0
"""Seconds in which the driver must have joined: Ray itself has shorter limits, so this is a driver that hangs."""
_ENDS_S = 20.0
"""Seconds that the driver may take to leave Ray, until it is killed; what Ray has started for it ends with it."""


class DriverLostError(NetworkError):
    """The driver has ended, or has lost its cluster; what was asked of it can be asked of another one."""


class DriverProcess:
    """A driver in a process of its own; threads may share it.

    Args:
        options: where the workers are.
        should_stop: asked while it joins.

    Attributes:
        workers: number of pieces that are computed at once.

    Raises:
        ConfigError, NetworkError: see connection.Connection.
        ToldToStopError: told to stop meanwhile.
    """

    def __init__(self, options: RayOptions, should_stop: Callable[[], bool]) -> None:
        context = multiprocessing.get_context("spawn")
        (self._questions, asked), (self._answers, answering) = context.Pipe(), context.Pipe()
        self._name = options.name
        self._process = context.Process(target=run_driver, args=(asked, answering, options), daemon=True)
        self._process.start()
        asked.close()
        answering.close()
        try:
            self.workers = self._first_answer(should_stop)
        except BaseException:
            self._process.kill()
            self._process.join()
            self._questions.close()
            self._answers.close()
            raise
        self._lock = threading.Lock()
        self._lost: DriverLostError | None = None
        self._is_closing = False
        self._kept: set[int] = set()
        self._waiting: dict[int, Future[Any]] = {}
        self._parcels: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def _first_answer(self, should_stop: Callable[[], bool]) -> int:
        until = time.monotonic() + _BEGINS_S
        while not self._answers.poll(_LOOK_S):
            if should_stop():
                raise ToldToStopError("told to stop while Ray was joined", "give the command again")
            if time.monotonic() > until:
                raise NetworkError(f"{self._name} was not joined within {_BEGINS_S:g} s", "ray status shows its nodes")
        try:
            first = receive(self._answers)
        except EOFError:
            raise NetworkError(f"{self._name} was lost while it was joined: {self._death()}", "try again") from None
        if isinstance(first, Ready):
            return first.workers
        raise error_of(first.why.code, first.why.what, first.why.hint)

    # -- in the threads that ask ---------------------------------------------------------------------------------

    def keep(self, number: int, value: object, owner: object) -> None:
        """Put a value into Ray's object store under a number, once, until its owner is gone."""
        with self._lock:
            if self._lost is not None or number in self._kept:
                return
            self._parcels.put(pack(Keep(number, value)))  # within the lock, so that no piece that needs it overtakes it
            self._kept.add(number)
        weakref.finalize(owner, self._parcels.put, pack(Drop(number))).atexit = False

    def ask(self, ask: Ask) -> Future[Any]:
        """Ask for a piece; return where its value or Refusal will be, or DriverLostError."""
        parcel, future = pack(ask), Future[Any]()
        with self._lock:
            if self._lost is None:
                self._waiting[ask.number] = future
                self._parcels.put(parcel)
            else:
                future.set_exception(self._lost)
        return future

    def cancel(self, number: int) -> None:
        """Say that nobody waits for a piece any more."""
        self._parcels.put(pack(Cancel(number)))

    def close(self) -> None:
        """Have the driver leave Ray and end; at once where it is lost."""
        self._is_closing = True
        self._parcels.put(None)
        if self._lost is None:
            self._process.join(_ENDS_S)
        self._process.kill()
        self._process.join()
        for thread in self._threads:
            thread.join()

    # -- in threads of its own -----------------------------------------------------------------------------------

    def _write(self) -> None:
        with self._questions, contextlib.suppress(OSError):  # that it has ended is said by the other thread
            while (parcel := self._parcels.get()) is not None:
                send(self._questions, parcel)

    def _read(self) -> None:
        with self._answers:
            lost = self._answered()
        with self._lock:
            self._lost, waiting = lost, list(self._waiting.values())
        self._process.kill()  # it may wait for Ray
        if not waiting and not self._is_closing:
            _LOG.warning("%s; the next piece of work joins it again", lost.what)
        for future in waiting:
            future.set_exception(lost)

    def _answered(self) -> DriverLostError:
        """Hand on what the driver answers, until it has ended; return why."""
        while True:
            try:
                answer = receive(self._answers)
            except EOFError:
                return DriverLostError(f"{self._name} is lost: {self._death()}")
            if isinstance(answer, Ended):
                return DriverLostError(answer.why.what, answer.why.hint)
            with self._lock:
                future = self._waiting.pop(answer.number)
            future.set_result(answer.value)

    def _death(self) -> str:
        """Return how the process has ended, which has closed its pipe."""
        self._process.join(_ENDS_S)
        code = self._process.exitcode
        how = "hangs" if code is None else f"has ended with {f'exit code {code}' if code >= 0 else f'signal {-code}'}"
        return f"the process that speaks to Ray {how}; Ray ends it where its head or this machine's raylet is gone"
