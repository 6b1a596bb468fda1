"""A simulation whose devices train on workers: all devices of a round at once, with the same bits as in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.forward_only.round import RoundSettings
from server.ray_work.evaluating import evaluate_on
from server.ray_work.workers import Recipe, Shared
from server.simulation.task import BundleTask
from server.simulation.training import InTurn, train_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.values import FloatVector
    from server.evaluation import Evaluation
    from server.ray_work.workers import Workers
    from server.simulation.task import SimulatedTask
    from server.simulation.training import Order, Trained

_MOST_KEPT = 2
"""Adapters that stay in the object store: rounds overlap at most by one."""


class OnWorkers:
    """Trains rounds on workers from the moment that a device has its plan: see training.Trainer.

    A private round draws its noise from the simulation's one generator, in the order in which devices finish: it is
    trained by this process.

    Args:
        workers: the workers.
        recipe: makes the task on a worker.
        in_turn: trains private rounds.
    """

    def __init__(self, workers: Workers, recipe: Recipe, in_turn: InTurn) -> None:
        self._workers, self._recipe, self._in_turn = workers, recipe, in_turn
        self._shared: dict[str, Shared] = {}

    def begin(self, order: Callable[[], Order], sha256: str, theta: Callable[[], FloatVector]) -> Callable[[], Trained]:
        """See Trainer."""
        made_order = order()
        if isinstance(made_order.settings, RoundSettings) and made_order.settings.privacy is not None:
            return self._in_turn.begin(order, sha256, theta)
        if sha256 not in self._shared:
            self._shared[sha256] = Shared(np.asarray(theta()))
            for old in list(self._shared)[:-_MOST_KEPT]:
                del self._shared[old]
        workers = self._workers
        pending = workers.submit(self._recipe, train_elsewhere, made_order, self._shared[sha256])

        def result() -> Trained:
            made: Trained = workers.result(pending)
            return made

        return result


def evaluated_on(workers: Workers, task: SimulatedTask) -> Callable[[FloatVector], Evaluation]:
    """Return what evaluates a task's adapters: workers, where a model does it."""
    if not isinstance(task, BundleTask):
        return task.evaluate
    return evaluate_on(workers, task.bundle, task.held_out, len(task.manifest.task.labels))
