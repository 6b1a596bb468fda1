"""Trains a forward-only plan's round on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.bounds import check_rows
from edge_runtime.forward_only.round import RoundSettings, train_round

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.values import FloatVector


def do_forward(
    plan: TrainPlan,
    device: str,
    loaded: LoadedBundle,
    start: tuple[FloatVector, FloatVector | None],
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> RoundResult | None:
    """Train a plan's round with forward passes.

    Args:
        plan: the round's plan.
        device: the device's name.
        loaded: bundle, rows and engine.
        start: the adapter, and the moment beside it, float32, (parameters,); None: the plan names none.
        goes_on: called after each step with its index and loss; the device abandons the round when it returns False.
        clock: monotonic seconds.

    Returns:
        The result; None where the round was abandoned.

    Raises:
        TrainingError: the plan's batches are larger than what the runtime's graphs take.
        CoveyError: see train_round.
    """
    check_rows(loaded.bundle.manifest, loaded.engines.runtime, min(plan.batch_size, len(loaded.rows)))
    theta, moment = start
    engine, settings = loaded.engine(plan.split), RoundSettings.of_plan(plan, device, moment)
    return train_round(engine, theta, loaded.rows, settings, goes_on, copy=loaded.copies, clock=clock)
