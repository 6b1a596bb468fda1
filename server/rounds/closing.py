"""The end of a round: from the reports in the ledger to the next adapter, entered before anything is forgotten."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_runtime.protocol.delta import read_delta
from server.errors import JobError
from server.rounds.aggregate import aggregate
from server.rounds.merge import Delta, forward_part, merge, merged_adapter
from server.storage.records import ClosedRound, RoundFigures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.job.fitted import FittedJob
    from server.rounds.aggregate import Aggregate
    from server.rounds.open_round import Offers
    from server.storage.adapters import AdapterChain
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger
    from server.storage.records import TakenDelta, TakenReport


def close_round(
    fitted: FittedJob, ledger: Ledger, chain: AdapterChain, uploaded: BlobStore, offers: Offers
) -> ClosedRound:
    """Aggregate a round, enter it, and go on to its adapter; ``uploaded`` holds its deltas.

    The result is a function of the ledger and the deltas: killed at any point, the server comes to the same one.

    Raises:
        TrainingError: the new adapter is not finite.
        JobError: a delta that was taken is not in the state directory.
        StorageError: disk full or not writable.
    """
    reports, deltas = offers.taken(), offers.taken_deltas()
    result = _aggregate(fitted, chain, offers, reports) if reports else None
    if result is not None and not deltas:
        log, blob, terms = chain.extend(result.log)
        closed = ClosedRound(
            index=log.round,
            base_sha256=log.base_sha256,
            result_sha256=log.result_sha256,
            log_sha256=blob.sha256,
            log_size_bytes=blob.size_bytes,
            terms=terms,
            mean_square=result.mean_square,
            figures=result.figures,
        )
    else:
        closed = _merged(fitted, chain, uploaded, offers, result, reports, deltas)
    ledger.close_round(fitted.job.name, offers.state.attempt, closed)
    chain.advance(closed)
    for delta in deltas.values():
        uploaded.remove(delta.sha256)
    return closed


def _aggregate(fitted: FittedJob, chain: AdapterChain, offers: Offers, reports: Mapping[str, TakenReport]) -> Aggregate:
    return aggregate(
        fitted.manifest.parameters,
        fitted.job,
        offers.state.index,
        offers.plan,
        (chain.sha256, chain.previous_sha256),
        chain.mean_square,
        reports,
    )


def _merged(
    fitted: FittedJob,
    chain: AdapterChain,
    uploaded: BlobStore,
    offers: Offers,
    forward: Aggregate | None,
    reports: Mapping[str, TakenReport],
    deltas: Mapping[str, TakenDelta],
) -> ClosedRound:
    """Merge the two kinds of devices; the adapter is a file, there is no log."""
    job, manifest = fitted.job, fitted.manifest
    parameters, layers, size = manifest.parameters, manifest.model.layers, chain.theta.size

    def share(examples: int) -> float:
        return float(examples) if job.weighting == "examples" else 1.0

    parts = {}
    for device, delta in deltas.items():
        path = uploaded.path(delta.sha256)
        if path is None:
            raise JobError(f"delta {delta.sha256[:12]} is not in the state directory", "restore it")
        moved = read_delta(path, parameters, delta.layers, layers)
        parts[device] = Delta(share(delta.examples), frozenset(delta.layers), moved)
    movement, figures = merge(
        parameters,
        layers,
        parts,
        None if forward is None else forward_part(forward.log, size),
        by_noise=job.stld is not None and job.stld.merging == "noise",
        forward_share=math.fsum(share(report.examples) for report in reports.values()),
    )
    adapter = merged_adapter(chain.theta, chain.previous(), job.server_momentum, movement)
    known = RoundFigures(offers.plan.split, None, None, None, None) if forward is None else forward.figures
    return ClosedRound(
        index=offers.state.index,
        base_sha256=chain.sha256,
        result_sha256=chain.add_file(adapter),
        log_sha256=None,
        log_size_bytes=None,
        terms=0,
        mean_square=chain.mean_square if forward is None else forward.mean_square,
        figures=RoundFigures(
            known.split, known.front_variance, known.back_variance, known.front_s, known.back_s, figures
        ),
    )
