"""What a simulated device computes: a pure function of the task, the adapter and the plan, so any process may do it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import BackpropResult, BackpropSettings, Personal, train_backprop
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.forward_only.round import RoundResult, RoundSettings, train_round

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from edge_runtime.values import FloatVector
    from server.simulation.task import SimulatedTask

Trained = RoundResult | BackpropResult


@dataclass(frozen=True)
class Order:
    """One device's round.

    Attributes:
        device: the device's number.
        split: where forward-only steps cut the model; backprop rounds do not use it.
        settings: of the steps.
    """

    device: int
    split: int
    settings: RoundSettings | BackpropSettings


def train(task: SimulatedTask, order: Order, theta: FloatVector, rng: np.random.Generator | None = None) -> Trained:
    """Train a device's round.

    Args:
        task: what is learned.
        order: the round.
        theta: the adapter to start from.
        rng: source of the noise of a private round; any other round needs none.

    Raises:
        TrainingError: a loss is not finite.
    """
    rows, settings = task.rows(order.device), order.settings
    if isinstance(settings, RoundSettings):
        engine = task.engine(order.device, order.split)
        made: Trained | None = train_round(engine, theta, rows, settings, rng=rng, clock=lambda: 0.0)
    else:
        personal = Personal({}, LayerStatistics.of(task.manifest.model.layers))
        slices = layer_slices(task.manifest)
        made = train_backprop(task.training_engine(order.device), theta, rows, settings, slices, personal)
    assert made is not None  # noqa: S101 nothing stops it
    return made


def train_elsewhere(task: SimulatedTask, order: Order, theta: FloatVector) -> Trained:
    """Train a device's round on a worker; the local adapter, which no report needs, does not travel."""
    made = train(task, order, theta)
    return replace(made, theta=None) if isinstance(made, RoundResult) else made


class Trainer(Protocol):
    """Trains the rounds of simulated devices."""

    def begin(self, order: Callable[[], Order], sha256: str, theta: Callable[[], FloatVector]) -> Callable[[], Trained]:
        """Begin a round.

        Args:
            order: returns the round, when it is trained.
            sha256: name of the adapter that it starts from.
            theta: returns that adapter.

        Returns:
            What waits for the result; it may never be called, where the device goes away.
        """


class InTurn:
    """Trains a round when its result is asked for, in this process.

    Args:
        task: what is learned.
        rng: source of the noise of private rounds.
    """

    def __init__(self, task: SimulatedTask, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng

    def begin(self, order: Callable[[], Order], sha256: str, theta: Callable[[], FloatVector]) -> Callable[[], Trained]:  # noqa: ARG002
        """See Trainer."""
        return lambda: train(self._task, order(), theta(), self._rng)
