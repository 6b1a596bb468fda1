"""What the coordinator sends, and what it checks in what it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.protocol.messages import (
    AdapterRef,
    BackpropPlan,
    SyncPlan,
    TrainPlan,
)
from edge_runtime.protocol.privacy import Privacy

if TYPE_CHECKING:
    from server.rounds.open_round import Offers
    from server.rounds.setting import Setting


def plan_for(
    setting: Setting, offers: Offers, device: str, adapter: AdapterRef, mean_square: float | None
) -> TrainPlan | BackpropPlan:
    """Return a device's plan of an open round, with the time that is left."""
    job, state, private = setting.fitted.job, offers.state, setting.fitted.job.privacy
    level = offers.plan.levels.get(device)
    if level is not None and offers.plan.stld is not None:
        return BackpropPlan(
            job=job.name,
            job_seed=job.seed,
            round=state.index,
            attempt=state.attempt,
            bundle_sha256=setting.fitted.bundle_sha256,
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
        bundle_sha256=setting.fitted.bundle_sha256,
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
        job=setting.fitted.job.name,
        round=round_index,
        bundle_sha256=setting.fitted.bundle_sha256,
        adapter=adapter,
        final=True,
        blob_url=setting.blob_url,
    )
