"""What the coordinator sends, and what it checks in what it gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_runtime import protocol
from edge_runtime.errors import ProtocolError
from edge_runtime.privacy import Privacy
from edge_runtime.round_log import unpack_scalars

if TYPE_CHECKING:
    from edge_runtime.rule import StepRule
    from server.coordinator import Setting
    from server.offers import Offers


def train_plan(
    setting: Setting, offers: Offers, adapter: protocol.AdapterRef, mean_square: float | None
) -> protocol.TrainPlan:
    """Return the plan of an open round, with the time that is left."""
    job, state, private = setting.job, offers.state, setting.job.privacy
    return protocol.TrainPlan(
        job=job.name,
        job_seed=job.seed,
        round=state.index,
        attempt=state.attempt,
        bundle_sha256=setting.bundle_sha256,
        adapter=adapter,
        rule=offers.plan.rule,
        split=offers.plan.split,
        steps=job.steps,
        batch_size=job.batch_size,
        mean_square=mean_square,
        privacy=None if private is None else Privacy(private.clip, private.noise_multiplier),
        deadline_s=max(1.0, state.deadline_at - setting.clock()),
        blob_url=setting.blob_url,
    )


def final_sync(setting: Setting, round_index: int, adapter: protocol.AdapterRef) -> protocol.SyncPlan:
    """Return the plan to take over a finished job's adapter."""
    return protocol.SyncPlan(
        job=setting.job.name,
        round=round_index,
        bundle_sha256=setting.bundle_sha256,
        adapter=adapter,
        final=True,
        blob_url=setting.blob_url,
    )


def check_report(report: protocol.RoundReport, rule: StepRule, steps: int, adapter_sha256: str) -> None:
    """Check a report against its plan; the types were checked at the border.

    Raises:
        ProtocolError: scalars that do not fit, another adapter, numbers that are not finite.
    """
    unpack_scalars(report.scalars, steps, rule.scalars_per_step)
    if report.adapter_sha256 != adapter_sha256:
        raise ProtocolError(
            f"trained adapter {report.adapter_sha256[:12]}, the round's is {adapter_sha256[:12]}",
            "the device fetches the adapter with its next plan",
        )
    if not math.isfinite(report.loss or 0.0) or not math.isfinite(report.seconds):
        raise ProtocolError("loss or seconds are not finite", "look at the device")
