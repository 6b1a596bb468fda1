"""A process's time with Ray, from joining to the end: pieces go out, results come back, the cluster is watched."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import NetworkError, TrainingError, cause_of
from server.ray_work.connection import RETRIES, Connection
from server.ray_work.piece import as_refusal, run_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from server.ray_work.options import RayOptions

_MEMORY = re.compile(r"\(IP: (?P<machine>[^,]+),.* was (?P<used>\S+)(?: used)? / (?P<total>\S+) ")
"""Where Ray's text of an OutOfMemoryError has the machine and its memory."""


class Session:
    """What the driver's process does with Ray; only one thread calls it, but for look.

    Args:
        options: where the workers are.

    Attributes:
        workers: number of pieces that are computed at once.

    Raises:
        ConfigError, NetworkError: see Connection.
    """

    def __init__(self, options: RayOptions) -> None:
        self._connection = Connection(options)
        self._ray = self._connection.ray
        self._remote = self._ray.remote(num_cpus=1, max_retries=RETRIES)(run_piece)
        self.workers = self._connection.workers

    def keep(self, value: object) -> Any:  # noqa: ANN401 Ray's
        """Put a value into Ray's object store; return its reference.

        Raises:
            NetworkError: Ray is lost; so for begin and look.
        """
        with self._or_lost():
            return self._ray.put(value)

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise self._connection.lost(cause_of(error)) from error

    def begin(
        self,
        make: Callable[[Any], Any],
        described: Any,  # noqa: ANN401 Ray's
        function: Callable[..., Any],
        arguments: Sequence[Any],
        done: Callable[[], None],
    ) -> Any:  # noqa: ANN401 Ray's
        """Hand a piece out; return its reference.

        Args:
            make: see piece.run_piece.
            described: reference of the description.
            function: see piece.run_piece.
            arguments: values and references.
            done: called in another thread once there is a result, or will never be one.
        """
        with self._or_lost():
            reference = self._remote.remote(make, [described], function, *arguments)
        reference.future().add_done_callback(lambda _future: done())
        return reference

    def value(self, reference: Any) -> Any:  # noqa: ANN401 of the piece's function
        """Return what a piece that is done has given, or a Refusal.

        Raises:
            NetworkError: this machine's raylet has ended, and Ray with it, which ends the driver only a moment later.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.LocalRayletDiedError as error:
            raise self._connection.lost(cause_of(error)) from error
        except errors.OutOfMemoryError as error:
            return as_refusal(_too_little_memory(error))
        except errors.RayError as error:
            return as_refusal(
                NetworkError(
                    f"a piece of work has failed on Ray, {RETRIES} times where its worker died: {cause_of(error)}",
                    "the system may have killed it for want of memory (dmesg says it): use fewer workers; else look "
                    "into Ray's logs on its machine (/tmp/ray/session_latest/logs); what was finished is kept",
                )
            )

    def cancel(self, reference: Any) -> None:  # noqa: ANN401 Ray's
        """Say that nobody waits for a piece any more; one that has begun is finished."""
        self._ray.cancel(reference)

    def look(self) -> None:
        """Look whether the cluster is there; another thread may call it."""
        with self._or_lost():
            self._connection.look()

    def close(self) -> None:
        """Leave the cluster; workers of this machine end."""
        self._connection.close()


def _too_little_memory(error: Exception) -> TrainingError:
    found = _MEMORY.search(" ".join(str(error).split()))
    what = "a machine of Ray" if found is None else f"machine {found['machine']}"
    full = cause_of(error) if found is None else f"{found['used']} of its {found['total']} were in use"
    return TrainingError(
        f"{what} has too little memory for its workers: {full}, and Ray has killed the worker of one piece of work "
        "again and again",
        "use fewer workers (--workers N; on a cluster ray start --num-cpus N on that machine), or a machine with more "
        "memory; Ray kills at 95 % of it (RAY_memory_usage_threshold); what was finished is kept",
    )
