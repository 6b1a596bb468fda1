"""What the coordinator sends, and what it checks in what it gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.delta import check_norms, most_bytes, read_delta
from edge_runtime.protocol.messages import (
    AdapterRef,
    BackpropPlan,
    DeltaReport,
    Report,
    RoundReport,
    SyncPlan,
    TrainPlan,
)
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.round_log import unpack_scalars

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.perturbation.perturb import FloatVector
    from server.rounds.coordinator import Setting
    from server.rounds.open_round import Offers


def plan_for(
    setting: Setting, offers: Offers, device: str, adapter: AdapterRef, mean_square: float | None
) -> TrainPlan | BackpropPlan:
    """Return a device's plan of an open round, with the time that is left."""
    job, state, private = setting.job, offers.state, setting.job.privacy
    level = offers.plan.levels.get(device)
    if level is not None and offers.plan.stld is not None:
        return BackpropPlan(
            job=job.name,
            job_seed=job.seed,
            round=state.index,
            attempt=state.attempt,
            bundle_sha256=setting.bundle_sha256,
            adapter=adapter,
            stld=offers.plan.stld,
            level=level,
            deadline_s=max(1.0, state.deadline_at - setting.clock()),
            blob_url=setting.blob_url,
        )
    return TrainPlan(
        job=job.name,
        job_seed=job.seed,
        round=state.index,
        attempt=state.attempt,
        bundle_sha256=setting.bundle_sha256,
        adapter=adapter,
        rule=offers.plan.rule_of(device),
        split=offers.plan.split,
        steps=job.steps,
        batch_size=job.batch_size,
        mean_square=mean_square,
        privacy=None if private is None else Privacy(private.clip, private.noise_multiplier),
        deadline_s=max(1.0, state.deadline_at - setting.clock()),
        blob_url=setting.blob_url,
    )


def final_sync(setting: Setting, round_index: int, adapter: AdapterRef) -> SyncPlan:
    """Return the plan to take over a finished job's adapter."""
    return SyncPlan(
        job=setting.job.name,
        round=round_index,
        bundle_sha256=setting.bundle_sha256,
        adapter=adapter,
        final=True,
        blob_url=setting.blob_url,
    )


def check_report(report: Report, offers: Offers, steps: int, adapter_sha256: str, manifest: Manifest) -> None:
    """Check a report against its plan; the types were checked at the border. A delta itself is not looked at.

    Raises:
        ProtocolError: the answer to another kind of plan, scalars or layers that do not fit, another adapter, numbers
            that are not finite.
    """
    level = offers.plan.levels.get(report.device)
    if isinstance(report, RoundReport) != (level is None):
        raise ProtocolError("the report answers another kind of plan", "look at the device")
    if isinstance(report, RoundReport):
        unpack_scalars(report.scalars, steps, offers.plan.rule_of(report.device).scalars_per_step)
    else:
        if report.level != level:
            raise ProtocolError(f"trained at level {report.level}, the plan says {level}", "look at the device")
        if report.layers != sorted(set(report.layers)) or report.layers[-1:] >= [manifest.model.layers]:
            raise ProtocolError(f"layers {report.layers} of {manifest.model.layers}", "look at the device")
        if report.delta.size_bytes > most_bytes(manifest.parameters):
            raise ProtocolError(
                f"the delta would have {report.delta.size_bytes} bytes, the layout needs at most "
                f"{most_bytes(manifest.parameters)}",
                "look at the device",
            )
    if report.adapter_sha256 != adapter_sha256:
        raise ProtocolError(
            f"trained adapter {report.adapter_sha256[:12]}, the round's is {adapter_sha256[:12]}",
            "the device fetches the adapter with its next plan",
        )
    if not math.isfinite(report.loss or 0.0) or not math.isfinite(report.seconds):
        raise ProtocolError("loss or seconds are not finite", "look at the device")


def check_delta(path: Path, report: DeltaReport, offers: Offers, manifest: Manifest, theta: FloatVector) -> None:
    """Check an uploaded delta; its hash was checked when it came.

    Raises:
        ProtocolError: other tensors or shapes, values that are not finite, a norm that the steps cannot give.
    """
    assert offers.plan.stld is not None  # noqa: S101 check_report has seen a level
    movement = read_delta(path, manifest.parameters, report.layers, manifest.model.layers)
    stld = offers.plan.stld
    check_norms(movement, theta, manifest.parameters, stld.steps, stld.learning_rate, stld.weight_decay)
