"""Evaluations beside the rounds: one at a time, in a thread, so that the next round is on its way meanwhile."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.perturbation.perturb import FloatVector
    from server.evaluation import Evaluation

Result = tuple["int | None", "Evaluation"]


class InlineEvaluator:
    """Evaluates adapters at once, in the caller's thread: what is known when does not depend on the machine.

    Args:
        evaluate: evaluates an adapter on the held-out rows.
    """

    def __init__(self, evaluate: Callable[[FloatVector], Evaluation]) -> None:
        self._evaluate = evaluate
        self._done: Result | None = None

    def start(self, index: int | None, theta: FloatVector) -> None:
        """See BackgroundEvaluator."""
        if self._done is not None:
            raise RuntimeError("collect the last evaluation first")
        self._done = (index, self._evaluate(theta))

    def collect(self, *, wait: bool) -> Result | None:  # noqa: ARG002 it is always done
        """See BackgroundEvaluator."""
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        """See BackgroundEvaluator."""


class BackgroundEvaluator:
    """Evaluates adapters in another thread.

    Args:
        evaluate: evaluates an adapter on the held-out rows.
    """

    def __init__(self, evaluate: Callable[[FloatVector], Evaluation]) -> None:
        self._evaluate = evaluate
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluate")
        self._running: tuple[int | None, concurrent.futures.Future[Evaluation]] | None = None

    def start(self, index: int | None, theta: FloatVector) -> None:
        """Begin with an adapter; the one before must have been collected."""
        if self._running is not None:
            raise RuntimeError("collect the last evaluation first")
        self._running = (index, self._executor.submit(self._evaluate, theta))

    def collect(self, *, wait: bool) -> Result | None:
        """Return a finished evaluation with the index it was begun with; None where there is none (yet)."""
        if self._running is None or not (wait or self._running[1].done()):
            return None
        index, future = self._running
        self._running = None
        return index, future.result()

    def close(self) -> None:
        """Wait for what runs, and end."""
        self._executor.shutdown(wait=True, cancel_futures=True)
