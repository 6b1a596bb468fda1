"""Workers: processes of Ray that compute pieces of work. Where one dies, or Ray, the piece is computed again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edge_runtime.errors import NetworkError
from server.errors import ToldToStopError, error_of
from server.ray_work.driver_process import DriverLostError, DriverProcess
from server.ray_work.joining_again import JoiningAgain
from server.ray_work.messages import Ask, Kept
from server.ray_work.piece import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from server.ray_work.options import RayOptions

_MOST_LOSSES = 5
"""How often Ray may be lost while a piece waits, until the piece may be the reason."""
_NUMBERS = itertools.count()
"""Numbers of shared values and pieces: no two of a process are alike."""
_LOG = logging.getLogger(__name__)
ValueT = TypeVar("ValueT")
_LOOK_S = 1.0
"""Seconds without a result after which a waiting thread looks at whether to stop."""
_LOOKS_TO_SAY = 60
"""After so many looks in vain the log says that a piece is waited for."""
_LOOKS_TO_STOP = 30
"""So many looks a piece still has once the command is told to stop: most pieces take a second."""


@dataclass(eq=False)
class Shared:
    """A value that many pieces need; it is put into Ray's object store once, and mapped by every worker.

    Attributes:
        value: the value.
        number: names it.
    """

    value: Any
    number: int = field(default_factory=_NUMBERS.__next__)


@dataclass(frozen=True)
class Recipe:
    """What all pieces of some work need; each worker makes it once.

    Attributes:
        make: makes it from its description; a function at the top of a module.
        described: its description.
    """

    make: Callable[[Any], Any]
    described: Shared


def as_described(value: ValueT) -> ValueT:
    """Return a description as it is: see Recipe.make."""
    return value


@dataclass(eq=False)
class Pending:
    """A piece that was handed out.

    Attributes:
        recipe: see Workers.submit.
        function: see Workers.submit.
        arguments: see Workers.submit.
        answer: where the driver that has it now puts its value.
        losses: how often Ray was lost while it waited.
        number: names it.
    """

    recipe: Recipe
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    answer: concurrent.futures.Future[Any]
    losses: int = 0
    number: int = field(default_factory=_NUMBERS.__next__)


class Workers:
    """The workers of a command; threads may share them.

    Ray's driver is a process of its own: Ray ends it where it is lost, and the command goes on with another one.

    Args:
        options: where they are.
        should_stop: asked while something is waited for.

    Attributes:
        are_here: whether all of them are processes of this machine, so that they see its files.

    Raises:
        ConfigError, NetworkError: see connection.Connection.
    """

    def __init__(self, options: RayOptions, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop
        self.are_here = options.address is None
        self._lock = threading.Lock()
        self._pieces: weakref.WeakSet[Pending] = weakref.WeakSet()
        self._driver = DriverProcess(options, should_stop)
        self._joining_again = JoiningAgain(options, should_stop)

    @property
    def number(self) -> int:
        """How many pieces are computed at once."""
        return self._driver.workers

    def submit(self, recipe: Recipe, function: Callable[..., Any], *arguments: Any) -> Pending:  # noqa: ANN401
        """Hand a piece out.

        Args:
            recipe: what it needs beside its arguments.
            function: gets what the recipe makes, and the arguments; a function at the top of a module, without effects.
            arguments: arrays in them are read-only for the function; of Shared ones it gets the value.
        """
        pending = Pending(recipe, function, arguments, concurrent.futures.Future())
        with self._lock:
            self._ask(pending)
            self._pieces.add(pending)
        return pending

    def _ask(self, pending: Pending) -> None:
        """Ask the driver for a piece."""
        described = pending.recipe.described
        for shared in (described, *pending.arguments):
            if isinstance(shared, Shared):
                self._driver.keep(shared.number, shared.value, shared)
        given = tuple(Kept(one.number) if isinstance(one, Shared) else one for one in pending.arguments)
        pending.answer = self._driver.ask(
            Ask(pending.number, pending.recipe.make, described.number, pending.function, given)
        )

    def result(self, pending: Pending) -> Any:  # noqa: ANN401 of the piece's function
        """Wait for a piece; where Ray is lost meanwhile, join it again and go on.

        Raises:
            CoveyError: the function has raised it.
            NetworkError: Ray is lost and cannot be joined again, or the piece's workers died again and again.
            TrainingError: they have too little memory.
            ToldToStopError: the command is told to stop.
        """
        while True:
            answer = pending.answer
            try:
                value = self._awaited(answer)
            except DriverLostError as lost:
                self._begin_again(pending, answer, lost)
                continue
            with self._lock:
                self._pieces.discard(pending)
            if isinstance(value, Refusal):
                raise error_of(value.code, value.what, value.hint)
            return value

    def _awaited(self, answer: concurrent.futures.Future[Any]) -> Any:  # noqa: ANN401 of the piece's function
        """Wait for a value: as long as it takes, but not much longer once the command is told to stop."""
        looks = looks_since_stop = 0
        while not concurrent.futures.wait([answer], _LOOK_S).done:
            looks += 1
            if looks % _LOOKS_TO_SAY == 0:
                _LOG.warning("a piece of work has no result yet; are the CPUs of the Ray cluster taken by others?")
            looks_since_stop += self._should_stop()
            if looks_since_stop > _LOOKS_TO_STOP:
                raise ToldToStopError(
                    "told to stop while a piece of work waits for a CPU of the Ray cluster", "run the command again"
                )
        return answer.result()

    def _begin_again(self, pending: Pending, answer: concurrent.futures.Future[Any], lost: DriverLostError) -> None:
        """Get another driver, and ask it for all that has no value yet."""
        if pending.losses == _MOST_LOSSES:
            raise NetworkError(
                f"Ray was lost {1 + pending.losses} times while it computed the same piece of work: {lost.what}",
                "look into Ray's logs (/tmp/ray/session_latest/logs): the piece may need too much memory for the "
                "machine; use fewer workers. What was finished is kept",
            )
        with self._joining_again.one_at_a_time():
            if pending.answer is not answer:
                return  # another thread has done it
            self._driver.close()
            driver = self._joining_again.driver(lost)
            with self._lock:
                self._driver = driver
                for piece in sorted(self._pieces, key=lambda piece: piece.number):
                    if isinstance(piece.answer.exception(), DriverLostError):
                        piece.losses += 1
                        self._ask(piece)

    def in_order(
        self,
        recipe: Recipe,
        function: Callable[..., Any],
        items: Iterable[Any],
        *arguments: Any,  # noqa: ANN401 of the function
    ) -> Iterator[Any]:
        """Yield the function's value for each item, in the order of the items.

        Twice as many items as there are workers are in work at once, so memory does not grow with their number.

        Args:
            recipe: see submit.
            function: gets what the recipe makes, the item, and the arguments.
            items: one for each piece.
            arguments: of all pieces.

        Raises:
            CoveyError: see result.
        """
        waiting: deque[Pending] = deque()
        try:
            for item in items:
                waiting.append(self.submit(recipe, function, item, *arguments))
                if len(waiting) > 2 * self.number:
                    yield self.result(waiting.popleft())
            while waiting:
                yield self.result(waiting.popleft())
        finally:
            self.cancel(waiting)

    def cancel(self, pieces: Iterable[Pending]) -> None:
        """Say that nobody waits for pieces any more; those that have begun are finished."""
        with self._lock:
            for pending in pieces:
                self._pieces.discard(pending)
                self._driver.cancel(pending.number)

    def close(self) -> None:
        """Leave the cluster; workers of this machine end."""
        self._driver.close()


@contextlib.contextmanager
def open_workers(
    options: RayOptions | None, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Workers | None]:
    """Have workers while the block runs; None: without Ray. ``should_stop``: see Workers.

    Raises:
        ConfigError, NetworkError: see connection.Connection.
    """
    if options is None:
        yield None
        return
    workers = Workers(options, should_stop)
    try:
        yield workers
    finally:
        workers.close()
