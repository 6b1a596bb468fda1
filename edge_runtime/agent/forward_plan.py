"""Trains a forward-only plan's round on a device."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_runtime.bundle.bounds import check_rows
from edge_runtime.bundle.layout import front_size
from edge_runtime.engines.bundle_engine import BundleEngine
from edge_runtime.forward_only.round import RoundSettings, rows_of_round, train_round
from edge_runtime.forward_only.step import adapters_at_once
from edge_runtime.fronts.frozen_engine import FrozenFront

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.back_stacks import BackStacks
    from edge_runtime.agent.frozen_fronts import FrozenFronts
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


def do_forward(
    plan: TrainPlan,
    device: str,
    loaded: LoadedBundle,
    ways: tuple[FrozenFronts, BackStacks],
    start: tuple[FloatVector, FloatVector | None],
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> RoundResult | None:
    """Train a plan's round with forward passes.

    Args:
        plan: the round's plan.
        device: the device's name.
        loaded: bundle, rows and engine.
        ways: makes the engines of plans that freeze the front, and chooses how many adapters a call takes.
        start: the adapter, and the moment beside it, float32, (parameters,); None: the plan names none.
        goes_on: called after each step with its index and loss, and before them, with -1 and NaN, for each row for
            which a frozen front is run; the device abandons the round when it returns False.
        clock: monotonic seconds.

    Returns:
        The result; None where the round was abandoned.

    Raises:
        TrainingError: the plan's batches are larger than what the runtime's graphs take.
        CoveyError: see train_round.
    """
    check_rows(loaded.bundle.manifest, loaded.engines.runtime, min(plan.batch_size, len(loaded.rows)))
    (theta, moment), (fronts, stacks) = start, ways
    rows_of_pass = min(plan.batch_size, len(loaded.rows))
    if not plan.rule.front_is_frozen:
        fronts.close()
    settings = RoundSettings.of_plan(plan, device, moment)
    has_front = front_size(loaded.bundle.manifest.parameters, plan.split) > 0
    most = adapters_at_once(plan.rule, has_front=has_front)
    settings = replace(settings, stack=stacks.stack(loaded, plan.split, rows_of_pass, most))
    if not plan.rule.front_is_frozen:
        engine = loaded.engine(plan.split)
        if isinstance(engine, BundleEngine):
            engine.open_front()  # now: it is not of the first step's time
    else:
        engine = fronts.engine(loaded, plan.split, theta)
        if isinstance(engine, FrozenFront):
            return _behind_front(engine, theta, loaded, settings, goes_on, clock)
    return train_round(engine, theta, loaded.rows, settings, goes_on, copy=loaded.copies, clock=clock)


def _behind_front(
    engine: FrozenFront,
    theta: FloatVector,
    loaded: LoadedBundle,
    settings: RoundSettings,
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> RoundResult | None:
    """Run the front for the rows of a round that are missing, and then the round: see do_forward."""
    before, started, rows = engine.counts, clock(), loaded.rows
    if not engine.fill(rows, rows_of_round(len(rows), settings), lambda: goes_on(-1, math.nan)):
        return None
    filled_s = clock() - started
    result = train_round(engine, theta, rows, settings, goes_on, copy=loaded.copies, clock=clock)
    if result is None:
        return None
    counts = engine.counts.since(before)
    _LOG.info("the front's activations: %d were kept, %d were not", counts.hits, counts.misses)
    rows_of_pass = min(settings.batch_size, len(rows))
    return replace(
        result,
        seconds=result.seconds + filled_s,
        front_seconds=result.front_seconds + filled_s,
        front_passes=-(-counts.runs // rows_of_pass) if engine.keeps_rows else counts.runs,
        front_hits=counts.hits,
        front_misses=counts.misses,
    )
