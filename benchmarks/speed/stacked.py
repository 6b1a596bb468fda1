"""Many perturbed adapters in one call of the back block against one after the other, as ratios of time per direction.

    python -m benchmarks.speed.stacked [--model minilm|smollm2] [--repeats 9]

`make bench-stacked` runs it, for the head alone (the last split) and for the last layer with it. A ratio below 1: the
call pays. Each pair of measurements is taken in turn, perturbing included; with one thread it is CPU time, with more it
is time on the clock. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.bundles import run_export, sample_model
from benchmarks.harness.figures import Spreads, ratios
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.folder import Bundle, open_bundle
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.perturbation.perturb import BACK, perturb_into
from edge_runtime.profiling.stacks import COUNTS, PAYS_BELOW
from edge_runtime.profiling.worker import make_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROWS, TOKENS, THREADS = (1, 8), (16, 64), (1, 2)
_EPS = 1e-3
_FLAGS = {
    "minilm": ("--task", "classify-head", "--split", "5,6"),
    "smollm2": (
        *("--task", "classify-prompt", "--split", "29", "--template", "{text} It was"),
        *("--label-words", " terrible, great"),
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(_FLAGS), default="minilm", help="(default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="a bundle with stack graphs (default: exported now)")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of measurements (default: %(default)s)")
    parser.add_argument(
        "--adapters", type=int, nargs="+", default=list(COUNTS), help="of a call (default: %(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.bundle or run_export(
            sample_model(args.model), Path(scratch) / "bundle", *_FLAGS[args.model], "--stack", is_silent=True
        )
        results = measure(open_bundle(folder), args.repeats, args.adapters)
    print(json.dumps({**results, **provenance(model=args.model, repeats=args.repeats)}))


def measure(bundle: Bundle, repeats: int = 9, adapters: Sequence[int] = COUNTS) -> Spreads:
    """Return the ratio of times per direction, stacked over one by one, for each split, shape, number and threads."""
    results: Spreads = {}
    print(f"{'split':>5} {'threads':>7} {'rows':>4} {'tokens':>6} {'adapters':>8}  stacked / one by one")
    for threads, split in itertools.product(THREADS, bundle.manifest.splits):
        run = _Both(bundle, split, threads, max(adapters))
        for rows, tokens, count in itertools.product(ROWS, TOKENS, adapters):
            found = run.ratios(rows, tokens, count, repeats)
            results[f"stacked_over_single_split{split}_{rows}x{tokens}_{count}_threads{threads}"] = found
            verdict = "pays" if found["median"] < PAYS_BELOW else "does not pay"
            print(
                f"{split:>5} {threads:>7} {rows:>4} {tokens:>6} {count:>8}  "
                f"{found['median']:.2f} ({found['min']:.2f} … {found['max']:.2f})  {verdict}",
                flush=True,
            )
    return results


class _Both:
    """Both ways to get the losses of many perturbed adapters at one split."""

    def __init__(self, bundle: Bundle, split: int, threads: int, most: int) -> None:
        engines = Engines(threads=threads)
        self._bundle, self._clock = bundle, time.process_time if threads == 1 else time.perf_counter
        self._engine, self._stack = engines.make_engine(bundle, split), engines.make_back_stack(bundle, split, most)
        theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
        cut = self._engine.front_workspace.size
        self._engine.front_workspace[:] = theta[:cut]
        self._back = theta[cut:]

    def ratios(self, rows: int, tokens: int, count: int, repeats: int) -> dict[str, float]:
        batch = make_batch(self._bundle, rows, tokens)
        boundary = self._engine.front(batch)

        def single() -> None:
            for seed in range(count):
                perturb_into(self._engine.back_workspace, self._back, seed, BACK, _EPS)
                self._engine.back(boundary, batch)

        def stacked() -> None:
            for seed in range(count):
                perturb_into(self._stack.workspace[seed], self._back, seed, BACK, _EPS)
            self._stack.losses(boundary, batch, count)

        single()
        stacked()
        times = [(self._timed(stacked), self._timed(single)) for _ in range(repeats)]
        return ratios([above for above, _ in times], [below for _, below in times])

    def _timed(self, run: Callable[[], None]) -> float:
        started = self._clock()
        run()
        return max(self._clock() - started, 1e-9)


if __name__ == "__main__":
    main()
