"""Measures how long the two blocks take: an engine that wraps another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.engine import BackStack, Engine
    from edge_runtime.values import FloatRows, FloatVector

BoundaryT = TypeVar("BoundaryT")


class TimedEngine(Generic[BoundaryT]):
    """Forwards every call to an engine and sums up its time, without that of perturbing.

    Args:
        engine: the engine that runs the blocks.
        clock: monotonic seconds.
        stack: the back block for many adapters, where there is one.

    Attributes:
        front_seconds: time of all front passes so far.
        stack: the same back block, timed; None: there is none.
    """

    def __init__(
        self, engine: Engine[BoundaryT], clock: Callable[[], float], stack: BackStack[Any] | None = None
    ) -> None:
        self._engine = engine
        self._clock = clock
        self.front_seconds = 0.0
        self.stack = None if stack is None else TimedStack(stack, clock)
        self._single_seconds = 0.0

    @property
    def back_seconds(self) -> float:
        """Time of all back passes so far, with those of calls for many adapters."""
        return self._single_seconds + (0.0 if self.stack is None else self.stack.seconds)

    @property
    def front_workspace(self) -> FloatVector:
        """See Engine."""
        return self._engine.front_workspace

    @property
    def back_workspace(self) -> FloatVector:
        """See Engine."""
        return self._engine.back_workspace

    def front_reads(self, batch: Batch) -> Sequence[slice]:
        """See Engine."""
        return self._engine.front_reads(batch)

    def back_reads(self, batch: Batch) -> Sequence[slice]:
        """See Engine."""
        return self._engine.back_reads(batch)

    def front(self, batch: Batch) -> BoundaryT:
        """See Engine."""
        started = self._clock()
        boundary = self._engine.front(batch)
        self.front_seconds += self._clock() - started
        return boundary

    def back(self, boundary: BoundaryT, batch: Batch) -> float:
        """See Engine."""
        started = self._clock()
        loss = self._engine.back(boundary, batch)
        self._single_seconds += self._clock() - started
        return loss


class TimedStack:
    """Forwards every call to a back block for many adapters and sums up its time.

    Args:
        stack: the back block.
        clock: monotonic seconds.

    Attributes:
        seconds: time of all calls so far.
    """

    def __init__(self, stack: BackStack[Any], clock: Callable[[], float]) -> None:
        self._stack, self._clock = stack, clock
        self.seconds = 0.0

    @property
    def workspace(self) -> FloatRows:
        """See BackStack."""
        return self._stack.workspace

    def losses(self, boundary: Any, batch: Batch, count: int) -> list[float]:  # noqa: ANN401 the engine's own kind
        """See BackStack."""
        started = self._clock()
        found = self._stack.losses(boundary, batch, count)
        self.seconds += self._clock() - started
        return found
