"""Closes a round: aggregates the reports into the next adapter, and commits it before discarding the reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from server.rounds.aggregate import aggregate
from server.rounds.agreement import delta_agreement
from server.rounds.delta_bounds import scaled_down
from server.rounds.delta_files import DeltaFiles, lost_delta
from server.rounds.merge import Delta, forward_part, merge, merged_adapter
from server.storage.records import ClosedRound, RoundFigures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.job.fitted import FittedJob
    from server.job.job import Job
    from server.rounds.aggregate import Aggregate
    from server.rounds.open_round import OpenRound
    from server.storage.adapters import AdapterChain
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger
    from server.storage.records import TakenDelta


def close_round(
    fitted: FittedJob, ledger: Ledger, chain: AdapterChain, uploaded: BlobStore, opened: OpenRound
) -> ClosedRound:
    """Aggregate a round, enter its result, and advance the chain to its adapter.

    The result is a function of the ledger and the deltas, so a server that was killed at any point comes to the same
    one.

    Args:
        fitted: the job and its bundle.
        ledger: the result is entered in it.
        chain: the job's adapters.
        uploaded: has the deltas; those of the round are removed at the end.
        opened: the round.

    Raises:
        TrainingError: the new adapter is not finite.
        JobError: the state directory does not have a delta that was taken, or its file is damaged.
        StorageError: the disk is full or not writable.
    """
    job, reports, deltas = fitted.job, opened.reports(), opened.deltas()
    forward = (
        aggregate(fitted.manifest.parameters, job, opened.state.index, opened.plan, chain.base, reports)
        if reports
        else None
    )
    agreement = {} if forward is None else forward.agreement
    if forward is not None and not deltas:
        closed = _logged(chain, forward)
    else:
        forward_share = math.fsum(_share(job, report.examples) for report in reports.values())
        parts = _opened(fitted, uploaded, deltas)
        agreement |= delta_agreement(fitted.manifest.parameters, fitted.manifest.model.layers, parts)
        closed = _merged(fitted, chain, opened, parts, forward, forward_share)
    ledger.close_round(job.name, opened.state.attempt, closed, agreement)
    chain.advance(closed)
    for delta in deltas.values():
        uploaded.remove(delta.sha256)
    return closed


def _share(job: Job, examples: int) -> float:
    return float(job.counted_examples(examples)) if job.weighting == "examples" else 1.0


def _logged(chain: AdapterChain, forward: Aggregate) -> ClosedRound:
    """Close a round of forward-only devices: devices can replay its log."""
    log, blob, terms = chain.extend(forward.log)
    return ClosedRound(
        index=log.round,
        base_sha256=log.base_sha256,
        result_sha256=log.result_sha256,
        log_sha256=blob.sha256,
        log_size_bytes=blob.size_bytes,
        terms=terms,
        mean_square=forward.mean_square,
        figures=msgspec.structs.replace(
            forward.figures, moment_sha256=None if log.result_moment_sha256 is UNSET else log.result_moment_sha256
        ),
    )


def _opened(fitted: FittedJob, uploaded: BlobStore, deltas: Mapping[str, TakenDelta]) -> dict[str, Delta]:
    """Check the deltas one after the other, and return them by device; their numbers stay in their files."""
    files = DeltaFiles(fitted.manifest.parameters, fitted.manifest.model.layers)
    parts = {}
    for device, delta in deltas.items():
        path = uploaded.whole(delta.sha256)
        if path is None:
            raise lost_delta(delta.sha256)
        share = _share(fitted.job, delta.examples)
        parts[device] = Delta(share, frozenset(delta.layers), files.open(path, delta.layers))
    robust = fitted.job.robust
    if robust is None or robust.max_delta_norm_ratio is None:
        return parts
    return scaled_down(parts, fitted.manifest.parameters, fitted.manifest.model.layers, robust.max_delta_norm_ratio)


def _merged(
    fitted: FittedJob,
    chain: AdapterChain,
    opened: OpenRound,
    parts: Mapping[str, Delta],
    forward: Aggregate | None,
    forward_share: float,
) -> ClosedRound:
    """Close a round with backprop devices: its adapter is a file, there is no log to replay."""
    job, manifest = fitted.job, fitted.manifest
    movement, merge_figures = merge(
        manifest.parameters,
        manifest.model.layers,
        parts,
        None if forward is None else forward_part(forward.log, chain.theta.size),
        by_noise=job.stld is not None and job.stld.merging == "noise",
        forward_share=forward_share,
    )
    adapter = merged_adapter(chain.theta, chain.previous(), job.server_momentum, movement)
    figures = RoundFigures(opened.plan.split, None, None, None, None) if forward is None else forward.figures
    return ClosedRound(
        index=opened.state.index,
        base_sha256=chain.sha256,
        result_sha256=chain.add_file(adapter),
        log_sha256=None,
        log_size_bytes=None,
        terms=0,
        mean_square=chain.mean_square if forward is None else forward.mean_square,
        figures=msgspec.structs.replace(figures, merge=merge_figures),
    )
