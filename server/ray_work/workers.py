"""Workers: processes of Ray that compute pieces of work. Where one dies, another one computes its piece again."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import NetworkError, TrainingError, cause_of
from server.errors import error_of
from server.ray_work.connection import Connection
from server.ray_work.piece import Refusal, run_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from server.ray_work.options import RayOptions

_RETRIES = 5
"""How often a piece is tried again where its worker has died."""
_SESSIONS = itertools.count()
"""Numbers of the connections of this process, so that no reference outlives its own."""
_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
"""Seconds without a result after which the cluster is looked at."""
_LOOKS_TO_SAY = 60
"""After so many looks in vain the log says that a piece is waited for."""
_LOOKS_TO_STOP = 30
"""So many looks a piece still has once the command is told to stop: most pieces take a second."""


@dataclass(eq=False)
class Shared:
    """A value that many pieces need; it is put into Ray's object store once, and mapped by every worker.

    Attributes:
        value: the value.
    """

    value: Any
    _places: dict[int, Any] = field(default_factory=dict)

    def reference(self, session: int, put: Callable[[Any], Any]) -> Any:  # noqa: ANN401 Ray's
        """Return its reference in one connection to Ray, by the connection's number."""
        if session not in self._places:
            self._places = {session: put(self.value)}
        return self._places[session]


@dataclass(frozen=True)
class Recipe:
    """What all pieces of some work need; each worker makes it once.

    Attributes:
        make: makes it from its description; a function at the top of a module.
        described: its description.
    """

    make: Callable[[Any], Any]
    described: Shared


@dataclass(frozen=True)
class Pending:
    """A piece that was handed out: Ray's reference of its result, and the number of the connection."""

    reference: Any
    session: int


class Workers:
    """The workers of a command; threads may share them.

    Args:
        options: where they are.
        should_stop: asked while a piece is waited for.

    Raises:
        ConfigError, NetworkError: see Connection.
    """

    def __init__(self, options: RayOptions, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._options, self._lock, self._should_stop = options, threading.Lock(), should_stop
        self._open()

    def _open(self) -> None:
        self._connection: Connection | None = None
        connection = Connection(self._options)
        self._remote = connection.ray.remote(num_cpus=1, max_retries=_RETRIES)(run_piece)
        self._connection, self._session = connection, next(_SESSIONS)

    def _opened(self) -> tuple[Connection, int]:
        """Return the connection and its number; one that was lost is made again."""
        with self._lock:
            if self._connection is None:
                self._open()
            assert self._connection is not None  # noqa: S101 it is open now
            return self._connection, self._session

    @property
    def number(self) -> int:
        """How many pieces are computed at once."""
        return self._opened()[0].workers

    def submit(self, recipe: Recipe, function: Callable[..., Any], *arguments: Any) -> Pending:  # noqa: ANN401
        """Hand a piece out.

        Args:
            recipe: what it needs beside its arguments.
            function: gets what the recipe makes, and the arguments; a function at the top of a module, without effects.
            arguments: arrays in them are read-only for the function; of Shared ones it gets the value.

        Raises:
            ConfigError, NetworkError: a lost cluster cannot be joined again.
        """
        connection, session = self._opened()
        put = connection.ray.put
        given = [one.reference(session, put) if isinstance(one, Shared) else one for one in arguments]
        described = [recipe.described.reference(session, put)]
        return Pending(self._remote.remote(recipe.make, described, function, *given), session)

    def result(self, pending: Pending) -> Any:  # noqa: ANN401 of the piece's function
        """Wait for a piece.

        Raises:
            CoveyError: the function has raised it.
            NetworkError: the cluster is lost, or the piece's workers died again and again.
            TrainingError: they have too little memory.
        """
        connection, session = self._opened()
        if session != pending.session:
            raise NetworkError("the Ray cluster was lost in the middle", "run the command again")
        try:
            self._wait(connection, pending)
            value = connection.ray.get(pending.reference)
        except NetworkError:
            self._forget(session)
            raise
        except connection.ray.exceptions.OutOfMemoryError as error:
            raise TrainingError(
                f"the workers of Ray have too little memory: {cause_of(error)}", "use fewer workers, or more machines"
            ) from error
        except connection.ray.exceptions.RayError as error:
            raise NetworkError(
                f"a piece of work has failed on Ray, {_RETRIES} times where its worker died: {cause_of(error)}",
                "look into Ray's logs on its machine (/tmp/ray/session_latest/logs); what was finished is kept",
            ) from error
        if isinstance(value, Refusal):
            raise error_of(value.code, value.what, value.hint)
        return value

    def _wait(self, connection: Connection, pending: Pending) -> None:
        """Wait for a piece: as long as it takes, but not much longer once the command is told to stop."""
        looks = looks_since_stop = 0
        while not connection.ray.wait([pending.reference], timeout=_LOOK_S)[0]:
            connection.look()
            looks += 1
            if looks % _LOOKS_TO_SAY == 0:
                _LOG.warning("a piece of work has no result yet; are the CPUs of the Ray cluster taken by others?")
            looks_since_stop += self._should_stop()
            if looks_since_stop > _LOOKS_TO_STOP:
                raise NetworkError(
                    "told to stop while a piece of work waits for a CPU of the Ray cluster", "run the command again"
                )

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
            connection, session = self._connection, self._session
        if connection is not None:
            for pending in pieces:
                if pending.session == session:
                    connection.ray.cancel(pending.reference)

    def _forget(self, session: int) -> None:
        """Close a connection that was lost; the next piece makes another one."""
        with self._lock:
            if self._connection is not None and self._session == session:
                lost, self._connection = self._connection, None
                lost.close()

    def close(self) -> None:
        """Leave the cluster; workers of this machine end."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


@contextlib.contextmanager
def open_workers(
    options: RayOptions | None, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Workers | None]:
    """Have workers while the block runs; None: without Ray. ``should_stop``: see Workers.

    Raises:
        ConfigError, NetworkError: see Connection.
    """
    if options is None:
        yield None
        return
    workers = Workers(options, should_stop)
    try:
        yield workers
    finally:
        workers.close()
