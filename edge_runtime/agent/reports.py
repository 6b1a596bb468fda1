"""Makes a round's report: what training gave, and what the device knows of the session it trained in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.protocol.plans import BlobRef
from edge_runtime.protocol.reports import DeltaReport, RoundReport
from edge_runtime.protocol.round_log import pack_scalars

if TYPE_CHECKING:
    from edge_runtime.backprop.round import BackpropResult
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.protocol.plans import BackpropPlan, TrainPlan


@dataclass(frozen=True)
class SessionFacts:
    """What a report says that training does not know; None: not known.

    Attributes:
        device: the device's name.
        examples: number of private rows.
        link_bytes_per_s: speed of the last download that was large enough to tell.
        replay_parameters_per_s: parameters × directions that the device replays per second.
        blob_bytes: bytes fetched over HTTP for this round's adapter.
        peak_rss_bytes: largest resident memory of the process so far.
    """

    device: str
    examples: int
    link_bytes_per_s: float | None = None
    replay_parameters_per_s: float | None = None
    blob_bytes: int = 0
    peak_rss_bytes: int | None = None


def round_report(plan: TrainPlan, result: RoundResult, facts: SessionFacts) -> RoundReport:
    """Return the report of a forward-only round.

    A private round's loss is left out, and how many of its rows were there before: both tell about the rows. So would
    runs of a frozen front: a private round counts one for each step, and takes no time for them.
    """
    hides_front = plan.privacy is not None and plan.rule.front_is_frozen
    says_rows = plan.privacy is None and result.front_hits is not None
    return RoundReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=facts.device,
        adapter_sha256=plan.adapter.file.sha256,  # obtain_adapter has hashed the bytes that were trained
        scalars=pack_scalars(result.scalars),
        examples=facts.examples,
        loss=None if plan.privacy is not None else result.loss,
        seconds=result.seconds,
        front_passes=plan.steps if hides_front else result.front_passes,
        back_passes=result.back_passes,
        front_seconds=0.0 if hides_front else result.front_seconds,
        back_seconds=result.back_seconds,
        link_bytes_per_s=facts.link_bytes_per_s,
        replay_parameters_per_s=facts.replay_parameters_per_s,
        blob_bytes=facts.blob_bytes,
        front_hits=result.front_hits if says_rows and result.front_hits is not None else UNSET,
        front_misses=result.front_misses if says_rows and result.front_misses is not None else UNSET,
    )


def delta_report(plan: BackpropPlan, result: BackpropResult, delta: bytes, facts: SessionFacts) -> DeltaReport:
    """Return the report of a backprop round.

    Args:
        plan: the round's plan.
        result: what training gave.
        delta: the encoded movement of the shared layers: see protocol/delta.py.
        facts: what the device knows beside it.
    """
    return DeltaReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=facts.device,
        adapter_sha256=plan.adapter.file.sha256,  # obtain_adapter has hashed the bytes that were trained
        delta=BlobRef(hashlib.sha256(delta).hexdigest(), len(delta)),
        front_hits=UNSET if result.front_hits is None else result.front_hits,
        front_misses=UNSET if result.front_misses is None else result.front_misses,
        layers=result.sent,
        personal_layers=len(result.personal.layers),
        level=plan.level,
        examples=facts.examples,
        loss=result.loss,
        seconds=result.seconds,
        peak_rss_bytes=facts.peak_rss_bytes,
        link_bytes_per_s=facts.link_bytes_per_s,
        replay_parameters_per_s=facts.replay_parameters_per_s,
        blob_bytes=facts.blob_bytes,
    )
