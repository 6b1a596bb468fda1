"""A backprop plan on a device: from the plan to the files and the report; nothing counts before the journal says so."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.backprop.round import BackpropWork, train_backprop
from edge_runtime.bundle.layers import layer_slices, no_scales
from edge_runtime.bundle.memory_need import check_level, level_need, levels_that_fit, rows_that_fit
from edge_runtime.device.memory import free_bytes, give_back, peak_rss_bytes
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.files.atomic import write_atomically
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.messages import BackpropPlan, BlobRef, DeltaReport
from edge_runtime.store.personal import personal_or_none, save_personal

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.loaded_bundle import Workshop
    from edge_runtime.backprop.round import BackpropResult
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


def check_plan(
    plan: BackpropPlan, bundle: Bundle, bytes_free: int | None, *, backpropagates: bool, runtime: Runtime
) -> dict[int, int]:
    """Check that a device can do a plan, before anything is loaded.

    Returns:
        The levels that it can hold, each with the rows that it runs at once.

    Raises:
        ConfigError: it trains with forward passes only: see EdgeConfig.backpropagates.
        BundleError: the bundle has no such level for the device's engine, or does not rescale residuals and the plan
            does.
        TrainingError: the level does not fit into memory.
    """
    if not backpropagates:
        raise ConfigError(
            "the plan needs backpropagation, this device is forward-only",
            'set training = "auto"',
        )
    manifest = bundle.manifest
    if not manifest.levels:
        raise BundleError("the bundle has no training graphs", "export it with --levels")
    fewest, most = plan.stld.fewest_rows, plan.stld.most_rows
    check_level(manifest, plan.level, fewest, bytes_free, runtime)
    if plan.stld.rescale and not manifest.training_graph(plan.level, runtime).rescales:
        raise no_scales()
    needs = {level: level_need(manifest, level, runtime) for level in manifest.levels}
    fit = levels_that_fit(list(needs.values()), bytes_free, fewest)
    return {level: rows_that_fit(needs[level], bytes_free, fewest, most) for level in fit}


def do_backprop(
    plan: BackpropPlan,
    device: str,
    backpropagates: bool,
    workshop: Workshop,
    theta: FloatVector,
    store: Store,
    personal_sha256: str | None,
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> tuple[DeltaReport, str | None] | None:
    """Train a plan's round, and write the delta and the personal layers.

    Args:
        plan: what to do.
        device: the device's name.
        backpropagates: see EdgeConfig.
        workshop: bundle, rows and engine.
        theta: the shared adapter, float32, (parameters,).
        store: where the files go.
        personal_sha256: the personal layers before the round.
        goes_on: told each step's index and loss; the round is given up when it returns False.
        clock: monotonic seconds.

    Returns:
        The report, what it does not know (link, rates, fetched bytes) left out, and the hash of the personal layers;
        None where the round was given up.

    Raises:
        CoveyError: see check_plan, train_backprop and write_atomically.
    """
    manifest = workshop.bundle.manifest
    levels = check_plan(plan, workshop.bundle, free_bytes(), backpropagates=backpropagates, runtime=workshop.runtime)
    rows_at_once = levels[plan.level]
    if rows_at_once < plan.stld.most_rows:
        _LOG.info("memory is short: %d of %d rows at once", rows_at_once, plan.stld.batch_size)
    personal = personal_or_none(store, personal_sha256, workshop.bundle, plan.job)
    engine = workshop.training_engine()
    work = BackpropWork(plan.job_seed, plan.round, device, plan.stld, plan.level, levels)
    started = clock()
    result = train_backprop(engine, theta, workshop.rows, work, layer_slices(manifest), personal, goes_on)
    if result is None:
        return None
    seconds = clock() - started
    give_back()
    delta = encode_delta(result.movement, manifest.parameters, result.sent, manifest.model.layers)
    report = report_of(plan, device, result, delta, len(workshop.rows), seconds)
    write_atomically(store.delta_file(report.delta.sha256), delta)
    keeps = plan.stld.personal_share > 0
    after_sha256 = save_personal(store, workshop.bundle, plan.job, result.personal) if keeps else None
    return msgspec.structs.replace(report, peak_rss_bytes=peak_rss_bytes()), after_sha256


def report_of(
    plan: BackpropPlan, device: str, result: BackpropResult, delta: bytes, examples: int, seconds: float
) -> DeltaReport:
    """Return the report of a round, what it does not say (memory, link, rates, fetched bytes) left out.

    Args:
        plan: what was done.
        device: the device's name.
        result: what came out.
        delta: the movement of the shared layers, encoded.
        examples: rows of private data.
        seconds: how long it took.
    """
    return DeltaReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=device,
        adapter_sha256=plan.adapter.file.sha256,  # of the bytes that are trained: obtain_adapter has hashed them
        delta=BlobRef(hashlib.sha256(delta).hexdigest(), len(delta)),
        layers=result.sent,
        personal_layers=len(result.personal.layers),
        level=plan.level,
        examples=examples,
        loss=result.loss,
        seconds=seconds,
        peak_rss_bytes=None,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        blob_bytes=0,
    )
