"""Trains a backprop plan's round on a device: first whether it fits into memory, then the round."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.backprop.round import BackpropSettings, rows_of_round, train_backprop
from edge_runtime.bundle.bounds import check_rows, largest_batch
from edge_runtime.bundle.layers import layer_slices, no_scales
from edge_runtime.bundle.levels import kind_of
from edge_runtime.bundle.memory_need import (
    behind_need,
    check_level,
    check_need,
    level_need,
    levels_that_fit,
    rows_that_fit,
)
from edge_runtime.errors import BundleError
from edge_runtime.fronts.frozen_training import FrozenTraining
from edge_runtime.host.heap import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.agent.frozen_fronts import FrozenFronts
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.backprop.round import BackpropResult, Personal
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.protocol.plans import BackpropPlan
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)
_NO_GRAPHS: Mapping[Level, Graph] = MappingProxyType({})


def check_plan(
    plan: BackpropPlan,
    bundle: Bundle,
    bytes_free: int | None,
    runtime: Runtime,
    behind: Mapping[Level, Graph] = _NO_GRAPHS,
) -> dict[Level, int]:
    """Check that a device can train a plan, before anything is loaded.

    Args:
        plan: the round's plan.
        bundle: the plan's bundle.
        bytes_free: free memory; None: not known, everything fits.
        runtime: whose training graphs are run.
        behind: training graphs that begin behind the plan's frozen front, by level: they need less memory.

    Returns:
        For each level that fits into memory, the rows of one micro-batch.

    Raises:
        BundleError: the bundle has no such level for the runtime, or does not rescale residuals and the plan does.
        TrainingError: the level does not fit into memory, or its micro-batches are larger than what the graph takes.
    """
    manifest = bundle.manifest
    if not manifest.levels:
        raise BundleError("the bundle has no training graphs", "export it with --levels")
    fewest, most = plan.stld.fewest_rows, plan.stld.most_rows
    if plan.level in behind:
        check_need(behind_need(manifest, behind[plan.level]), fewest, bytes_free)
    else:
        check_level(manifest, plan.level, fewest, bytes_free, runtime)
    check_rows(manifest, runtime, fewest)
    most = min(most, largest_batch(manifest, runtime) or most)
    if (
        plan.stld.rescale
        and kind_of(plan.level) == "drop"
        and not manifest.training_graph(plan.level, runtime).rescales
    ):
        raise no_scales()
    needs = {level: level_need(manifest, level, runtime) for level in manifest.levels}
    needs |= {level: behind_need(manifest, graph) for level, graph in behind.items()}
    fit = levels_that_fit(list(needs.values()), bytes_free, fewest)
    return {level: rows_that_fit(needs[level], bytes_free, fewest, most) for level in fit}


def do_backprop(
    plan: BackpropPlan,
    device: str,
    loaded: LoadedBundle,
    fronts: FrozenFronts,
    start: tuple[FloatVector, Personal],
    bytes_free: int | None,
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> BackpropResult | None:
    """Train a plan's round with backpropagation.

    Args:
        plan: the round's plan.
        device: the device's name.
        loaded: bundle, rows and engine.
        fronts: makes the engines of plans that freeze the front.
        start: the shared adapter, float32, (parameters,), and the device's personal layers before the round.
        bytes_free: free memory; None: not known.
        goes_on: called after each step with its index and loss, and before them, with -1 and NaN, for each row for
            which a frozen front is run; the device abandons the round when it returns False.
        clock: monotonic seconds.

    Returns:
        The result; None where the round was abandoned.

    Raises:
        CoveyError: see check_plan and train_backprop.
    """
    theta, personal = start
    split = None if plan.frozen_split is UNSET else plan.frozen_split
    behind = fronts.graphs_behind(loaded, split)
    rows_at_once = check_plan(plan, loaded.bundle, bytes_free, loaded.engines.runtime, behind)
    if rows_at_once[plan.level] < plan.stld.most_rows:
        _LOG.info("memory is short: %d of %d rows at once", rows_at_once[plan.level], plan.stld.batch_size)
    if plan.level in behind and split is not None:
        engine = fronts.training_engine(loaded, split, theta, behind)
    else:
        fronts.close()
        engine = loaded.training_engine()
    settings, slices = BackpropSettings.of_plan(plan, device, rows_at_once), layer_slices(loaded.bundle.manifest)
    before, started = engine.front.counts if isinstance(engine, FrozenTraining) else None, clock()
    if isinstance(engine, FrozenTraining):
        wanted = rows_of_round(len(loaded.rows), settings)
        if not engine.fill(loaded.rows, wanted, lambda: goes_on(-1, math.nan)):
            return None
    filled_s = clock() - started
    result = train_backprop(engine, theta, loaded.rows, settings, slices, personal, goes_on, clock)
    if result is None:
        return None
    give_back()
    if not isinstance(engine, FrozenTraining) or before is None:
        return result
    counts = engine.front.counts.since(before)
    _LOG.info("the front's activations: %d were kept, %d were not", counts.hits, counts.misses)
    seconds = result.seconds + filled_s
    return replace(result, seconds=seconds, front_hits=counts.hits, front_misses=counts.misses)
