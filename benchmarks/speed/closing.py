"""Memory that a server needs to close a round of backprop devices, by the number of devices.

    python -m benchmarks.speed.closing [--cohorts 10,50,200] [--parameters 1000000]

A real ledger, blob store and open round; each device's delta is a file, as its upload leaves it. The peak is what
Python and NumPy hold at once while the round is closed (tracemalloc), above what they held before. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layout import Parameter
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.reports import DeltaReport
from server.compose import Stores, enter, open_stores
from server.job.fitted import FittedJob
from server.job.job import Job, JobStld
from server.planning.planner import DrawnRound
from server.rounds.closing import close_round
from server.rounds.open_round import begin_attempt
from server.simulation.bowl import Bowl
from server.storage.records import RoundPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.protocol.plans import BlobRef
    from edge_runtime.values import FloatVector
    from server.job.robust import Robust
    from server.rounds.open_round import OpenRound
    from server.storage.adapters import AdapterChain

LAYERS = 8
_JOB = Job(name="job", eval_file="none", rounds=1, split=0, stld=JobStld(steps=1, batch_size=1, learning_rate=0.1))


class Start:
    """The start of a job whose adapter is zeros.

    Args:
        size: number of parameters.
    """

    def __init__(self, size: int) -> None:
        self._theta: FloatVector = np.zeros(size, dtype=np.float32)
        self.initial_sha256 = adapter_sha256(self._theta)

    def initial_adapter(self) -> FloatVector:
        """See adapters.Start."""
        return self._theta


def job_of(parameters: int, robust: Robust | None = None) -> FittedJob:
    """Return a job of backprop devices on a model with LAYERS layers and this many parameters."""
    a_layer = parameters // LAYERS
    layout = [Parameter(f"layer.{layer}", [a_layer], layer, layer * a_layer) for layer in range(LAYERS)]
    bowl = Bowl(LAYERS, [0], [LAYERS], 1, np.random.Generator(np.random.PCG64(0)))
    manifest = msgspec.structs.replace(bowl.manifest, parameters=layout)
    return FittedJob.unchecked(msgspec.structs.replace(_JOB, robust=robust), manifest, bowl.sha256)


def reported_round(fitted: FittedJob, stores: Stores, chain: AdapterChain, cohort: int) -> OpenRound:
    """Return a round in which each device has sent a delta of its own; every third one left its first layer out."""
    names, n_layers = [f"device-{number:04}" for number in range(cohort)], fitted.manifest.model.layers
    plan = RoundPlan(0, fitted.job.step, Stld(steps=1, batch_size=1, learning_rate=0.1), dict.fromkeys(names, n_layers))
    drawn = DrawnRound(0, 0, names, plan)
    opened = begin_attempt(fitted.job, stores.ledger, lambda _event: None, drawn, chain.base, 0.0)
    rng = np.random.Generator(np.random.PCG64(1))
    for number, name in enumerate(names):
        layers = list(range(1 if number % 3 == 0 else 0, n_layers))
        moved = rng.standard_normal(chain.theta.size, dtype=np.float32) * np.float32(1e-3 * (1 + number % 4))
        ref = stores.uploads.blobs.add(encode_delta(moved, fitted.manifest.parameters, layers, n_layers))
        opened.record(name, _report(fitted, chain, name, layers, ref), 200)
    return opened


def _report(fitted: FittedJob, chain: AdapterChain, name: str, layers: list[int], delta: BlobRef) -> DeltaReport:
    return DeltaReport(
        job=fitted.job.name,
        round=0,
        attempt=0,
        device=name,
        adapter_sha256=chain.sha256,
        examples=10,
        loss=0.5,
        seconds=1.0,
        blob_bytes=0,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        level=fitted.manifest.model.layers,
        layers=layers,
        delta=delta,
        personal_layers=0,
        peak_rss_bytes=None,
    )


@dataclass(frozen=True)
class Closing:
    """What the closing of one round took.

    Attributes:
        result_sha256: the adapter that it gave.
        peak_bytes: most memory that it held at once.
        seconds: wall time.
    """

    result_sha256: str
    peak_bytes: int
    seconds: float


def closing_of(cohort: int, parameters: int, robust: Robust | None = None) -> Closing:
    """Close a round of this many devices, and return what it took."""
    fitted = job_of(parameters, robust)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stores = open_stores(Path(folder), durable=False)
        stack.callback(stores.ledger.close)
        chain, _ = enter("fleet", fitted, Start(fitted.manifest.parameters[-1].stop), stores)
        opened = reported_round(fitted, stores, chain, cohort)
        tracemalloc.start()
        try:
            began, before = time.perf_counter(), tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            closed = close_round(fitted, stores.ledger, chain, stores.uploads.blobs, opened)
            return Closing(
                closed.result_sha256, tracemalloc.get_traced_memory()[1] - before, time.perf_counter() - began
            )
        finally:
            tracemalloc.stop()


def measure(cohorts: Sequence[int] = (10, 200), parameters: int = 1_000_000) -> dict[str, float]:
    """Return the peak in MB and the seconds by cohort: ``close_peak_mb_10``, ``close_s_10``, and so on."""
    found: dict[str, float] = {}
    for cohort in cohorts:
        took = closing_of(cohort, parameters)
        found |= {f"close_peak_mb_{cohort}": took.peak_bytes / 1e6, f"close_s_{cohort}": took.seconds}
    return found


def main() -> None:
    """Measure each cohort; print a table, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", default="10,50,200", help="numbers of devices (default: %(default)s)")
    parser.add_argument("--parameters", type=int, default=1_000_000, help="of the adapter (default: %(default)s)")
    args = parser.parse_args()
    cohorts = [int(word) for word in args.cohorts.split(",")]
    results = measure(cohorts, args.parameters)
    print(f"{'devices':>8} {'deltas MB':>10} {'peak MB':>8} {'seconds':>8}")
    for cohort in cohorts:
        deltas_mb = 4e-6 * cohort * args.parameters
        peak, seconds = results[f"close_peak_mb_{cohort}"], results[f"close_s_{cohort}"]
        print(f"{cohort:8} {deltas_mb:10.0f} {peak:8.1f} {seconds:8.2f}")
    print(json.dumps({**provenance(parameters=args.parameters), **results}))


if __name__ == "__main__":
    main()
