"""Makes the plans that the server sends: a device's part of an open round, and the final synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, SyncPlan, TrainPlan
from edge_runtime.protocol.privacy import Privacy

if TYPE_CHECKING:
    from server.job.fitted import FittedJob
    from server.rounds.open_round import OpenRound

_LEAST_S = 1.0
"""Seconds that a plan gives a device at least: it may be sent again just before the deadline."""


class Plans:
    """Makes the plans of one job.

    Args:
        fitted: the job and its bundle.
        blob_url: where devices fetch blobs.
    """

    def __init__(self, fitted: FittedJob, blob_url: str) -> None:
        self._fitted, self._blob_url = fitted, blob_url

    def training(
        self, opened: OpenRound, device: str, adapter: AdapterRef, mean_square: float | None, now: float
    ) -> TrainPlan | BackpropPlan:
        """Return a device's plan in an open round.

        Args:
            opened: the open round.
            device: name of the device.
            adapter: the adapter to start from.
            mean_square: mean square of the last round's scalars; None: not known.
            now: seconds of the server's clock; the plan carries the seconds that are left.
        """
        job, state, private = self._fitted.job, opened.state, self._fitted.job.privacy
        deadline_s = max(_LEAST_S, state.deadline_at - now)
        level = opened.plan.levels.get(device)
        if level is not None and opened.plan.stld is not None:
            return BackpropPlan(
                job=job.name,
                job_seed=job.seed,
                round=state.index,
                attempt=state.attempt,
                bundle_sha256=self._fitted.bundle_sha256,
                adapter=adapter,
                stld=opened.plan.stld,
                level=level,
                deadline_s=deadline_s,
                blob_url=self._blob_url,
                frozen_split=opened.plan.split if opened.plan.rule.front_is_frozen else UNSET,
            )
        return TrainPlan(
            job=job.name,
            job_seed=job.seed,
            round=state.index,
            attempt=state.attempt,
            bundle_sha256=self._fitted.bundle_sha256,
            adapter=adapter,
            rule=opened.plan.rule_of(device),
            split=opened.plan.split,
            steps=job.steps,
            batch_size=job.batch_size,
            mean_square=mean_square,
            privacy=None if private is None else Privacy(private.clip, private.noise_multiplier),
            deadline_s=deadline_s,
            blob_url=self._blob_url,
        )

    def final_sync(self, round_index: int, adapter: AdapterRef) -> SyncPlan:
        """Return the plan to fetch a finished job's adapter."""
        return SyncPlan(
            job=self._fitted.job.name,
            round=round_index,
            bundle_sha256=self._fitted.bundle_sha256,
            adapter=adapter,
            final=True,
            blob_url=self._blob_url,
        )
