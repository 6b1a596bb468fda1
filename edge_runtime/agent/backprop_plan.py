"""Trains a backprop plan's round on a device: first whether it fits into memory, then the round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.backprop.round import BackpropSettings, train_backprop
from edge_runtime.bundle.bounds import check_rows, largest_batch
from edge_runtime.bundle.layers import layer_slices, no_scales
from edge_runtime.bundle.levels import kind_of
from edge_runtime.bundle.memory_need import check_level, level_need, levels_that_fit, rows_that_fit
from edge_runtime.device.memory import give_back
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.backprop.round import BackpropResult, Personal
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.protocol.plans import BackpropPlan
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


def check_plan(plan: BackpropPlan, bundle: Bundle, bytes_free: int | None, runtime: Runtime) -> dict[Level, int]:
    """Check that a device can train a plan, before anything is loaded.

    Args:
        plan: the round's plan.
        bundle: the plan's bundle.
        bytes_free: free memory; None: not known, everything fits.
        runtime: whose training graphs are run.

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
    fit = levels_that_fit(list(needs.values()), bytes_free, fewest)
    return {level: rows_that_fit(needs[level], bytes_free, fewest, most) for level in fit}


def do_backprop(
    plan: BackpropPlan,
    device: str,
    loaded: LoadedBundle,
    theta: FloatVector,
    personal: Personal,
    bytes_free: int | None,
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> BackpropResult | None:
    """Train a plan's round with backpropagation.

    Args:
        plan: the round's plan.
        device: the device's name.
        loaded: bundle, rows and engine.
        theta: the shared adapter, float32, (parameters,).
        personal: the device's personal layers before the round.
        bytes_free: free memory; None: not known.
        goes_on: called after each step with its index and loss; the device abandons the round when it returns False.
        clock: monotonic seconds.

    Returns:
        The result; None where the round was abandoned.

    Raises:
        CoveyError: see check_plan and train_backprop.
    """
    rows_at_once = check_plan(plan, loaded.bundle, bytes_free, loaded.engines.runtime)
    if rows_at_once[plan.level] < plan.stld.most_rows:
        _LOG.info("memory is short: %d of %d rows at once", rows_at_once[plan.level], plan.stld.batch_size)
    engine, settings = loaded.training_engine(), BackpropSettings.of_plan(plan, device, rows_at_once)
    slices = layer_slices(loaded.bundle.manifest)
    result = train_backprop(engine, theta, loaded.rows, settings, slices, personal, goes_on, clock)
    if result is not None:
        give_back()
    return result
