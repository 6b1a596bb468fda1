"""Speed of perturbing and of replaying: the compiled kernel, NumPy and a plain copy alternate on one thread.

    python -m benchmarks.speed.perturb [--parameters 16777216]

`make bench-perturb` runs it. The last line is one JSON object: nanoseconds per parameter (of a replay: per parameter
and seed), and ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness.figures import Spreads, ratios, spread
from benchmarks.harness.provenance import provenance
from edge_runtime.perturbation import native_kernel, numpy_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.perturbation.native_kernel import Perturb
    from edge_runtime.values import FloatVector

BOUNDS = {"perturb_ns_kernel": 0.35, "perturb_ns_numpy": 1.2}
LEAST = {"replay_passes_over_one": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parameters", type=int, default=1 << 24, help="parameters of a perturbation (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=25, help="measurements of a perturbation (default: %(default)s)")
    parser.add_argument(
        "--replay-parameters", type=int, default=100_000_000, help="parameters of a replay (default: %(default)s)"
    )
    parser.add_argument("--replay-seeds", type=int, default=100, help="seeds of a replay (default: %(default)s)")
    parser.add_argument("--replay-repeats", type=int, default=5, help="measurements of a replay (default: %(default)s)")
    args = parser.parse_args()
    try:
        native = native_kernel.load()
    except native_kernel.KernelMissingError as error:
        raise SystemExit(f"no compiled kernel: {error}") from error
    results = measure_perturbing(native, args.parameters, args.repeats)
    results |= measure_replay(native, args.replay_parameters, args.replay_seeds, args.replay_repeats)
    for key, found in results.items():
        verdict = ""
        if key in BOUNDS:
            verdict = f"{'within' if found['median'] <= BOUNDS[key] else 'OVER'} {BOUNDS[key]}"
        elif key in LEAST:
            verdict = f"{'at least' if found['median'] >= LEAST[key] else 'BELOW'} {LEAST[key]}"
        print(f"{key:30} {found['median']:8.4f}  ({found['min']:.4f} … {found['max']:.4f})  {verdict}")
    sizes = {key: value for key, value in vars(args).items() if "repeats" not in key}
    print(json.dumps({**results, **provenance(**sizes)}))


def measure_perturbing(native: Perturb, size: int, repeats: int) -> Spreads:
    """Measure one perturbation out of place, as a step makes it, in nanoseconds per parameter."""
    clean = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    out = np.zeros_like(clean)

    def one(perturb: Perturb, out: FloatVector) -> None:
        perturb(out, clean, np.array([7], np.uint64), 1, np.array([1e-3], np.float32), 0)

    seconds = in_turn(
        {
            "kernel": lambda: one(native, out),
            "numpy": lambda: one(numpy_kernel.perturb, out),
            "copy": lambda: np.copyto(out, clean),
        },
        repeats,
    )
    nanoseconds = {name: [s / size * 1e9 for s in found] for name, found in seconds.items()}
    return {
        **{f"perturb_ns_{name}": spread(found) for name, found in nanoseconds.items()},
        "perturb_kernel_over_copy": ratios(seconds["kernel"], seconds["copy"]),
    }


def measure_replay(native: Perturb, size: int, n_seeds: int, repeats: int) -> Spreads:
    """Measure a replay in place: all seeds in one pass, against one pass per seed with the same kernel."""
    theta = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    seeds = np.arange(n_seeds, dtype=np.uint64)
    scales = np.full(n_seeds, 1e-6, dtype=np.float32)

    def one_pass_per_seed() -> None:
        for k in range(n_seeds):
            native(theta, theta, seeds[k : k + 1], 1, scales[k : k + 1], 0)

    seconds = in_turn({"many": lambda: native(theta, theta, seeds, 1, scales, 0), "passes": one_pass_per_seed}, repeats)
    terms = size * n_seeds
    return {
        "replay_ns_kernel": spread([s / terms * 1e9 for s in seconds["many"]]),
        "replay_ns_pass_a_seed": spread([s / terms * 1e9 for s in seconds["passes"]]),
        "replay_passes_over_one": ratios(seconds["passes"], seconds["many"]),
    }


def in_turn(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each function; they alternate in an order that reverses each time.

    The first run of each is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        print(f"\r{' against '.join(functions)}: {repeat} of {repeats} ", end="", file=sys.stderr)
        for name in functions if repeat % 2 else reversed(functions):
            started = time.perf_counter()
            functions[name]()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    print(file=sys.stderr)
    return seconds


if __name__ == "__main__":
    main()
