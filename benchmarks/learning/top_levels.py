"""What training only the last layers is worth: full depth, layer dropout and top levels on the same rows and seeds.

The jobs are those of droppeft.py with MiniLM (Rotten Tomatoes on 20 devices, divided by movie, 4 of them a round, 12
rounds), at the learning rate that droppeft.py tuned for full depth and for half depth, or at --rate; with --rows
validation, rates are compared on the rows on which droppeft.py tunes. What a step costs, `python -m
benchmarks.speed.top_levels --model minilm --tokens 48` measures. Runs are kept in a JSON Lines file and never repeated.

`time_full_over_ours`, `accuracy_less` and `memory_ratio` compare full depth with the top level, number of rounds and
rate whose device is first at 95% of full depth's gain where it keeps the front's activations. Its gradients are those
of the level (tests/fleet/test_frozen_training.py), so the same runs serve; what they cost is measured once.

    python -m benchmarks.learning.top_levels [--seeds 1,2,3] [--rounds 12]     some minutes a seed on an idle machine
    python -m benchmarks.learning.top_levels --report                           the table of the kept runs
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.division import START_ROWS
from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.harness.results import find_or_run, print_run, read_results
from benchmarks.harness.tables import markdown_table, mean_and_deviation
from benchmarks.learning import frozen_levels
from benchmarks.learning.droppeft_rows import write_rows
from benchmarks.learning.droppeft_variants import PLANS
from edge_runtime.bundle.levels import TOP_PREFIX, forward_passes

if TYPE_CHECKING:
    from benchmarks.harness.results import Results
    from edge_runtime.bundle.levels import Level

PROGRAM = ("-m", "benchmarks.learning.droppeft")
RATE = 0.003
"""The best of droppeft.py's rates on validation rows, for full and for half depth."""
BASE_ROUNDS = 12
"""Rounds of the jobs of full depth to which the others are compared."""
LEVELS: tuple[Level, ...] = (6, "top:2", "top:1", 3, "top:3")
HEAD = ("level", "seeds", "held-out loss", "accuracy", "accuracy less full depth's", "rounds to 95%", "full / ours")


def main() -> None:
    results = ROOT / "benchmarks" / "results" / "top_levels.jsonl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3", help="seeds, separated by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=BASE_ROUNDS, help="rounds of a job (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate (default: %(default)s)")
    parser.add_argument("--rows", choices=("test", "validation"), default="test", help="(default: %(default)s)")
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), help="levels (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=ROOT / ".covey" / "top_levels", help="bundle and rows")
    parser.add_argument("--report", action="store_true", help="run nothing, print the table of the kept runs")
    args = parser.parse_args()
    if not args.report:
        asked = args.levels.split(",")
        levels = [level for level in LEVELS if str(level) in asked]
        seeds = [int(seed) for seed in args.seeds.split(",")]
        run_all(results, args.workdir, levels, seeds, (args.rounds, args.rate, args.rows))
    found = read_results(results)
    runs = [result for result in found if result.get("rows") == args.rows]
    kept = [run for run in runs if run["rounds"] == args.rounds and run["stld"]["learning_rate"] == args.rate]
    print(table(kept))
    costs = frozen_levels.kept_costs(found)
    ours = frozen_levels.ours_against_full(runs, costs, BASE_ROUNDS) if costs else {}
    print(json.dumps({**summary(kept), **ours, **provenance()}))


def run_all(results: Path, root: Path, levels: list[Level], seeds: list[int], job: tuple[int, float, str]) -> None:
    """Make all runs that are not in the results file yet, a seed after the other, and measure costs.

    Args:
        results: the results file.
        root: bundle and rows.
        levels: the levels.
        seeds: the seeds.
        job: its rounds, its learning rate, and the rows on which it is evaluated.
    """
    rounds, rate, rows = job
    plan = PLANS["minilm"]
    bundle = prepare(root)
    frozen_levels.frozen_costs(plan, bundle, results)
    for seed in seeds:
        for level in levels:
            key: dict[str, Any] = {
                "model": "minilm",
                "division": "movie",
                "rows": rows,
                "seed": seed,
                "rounds": rounds,
                "eval_every": plan.setup.eval_every,
                "level": level,
                "fleet": "backprop",
                "step": plan.step,
                "stld": {**plan.stld, "learning_rate": rate, "kinds": ["drop", "top"]},
            }
            result, seconds = find_or_run(results, PROGRAM, key, {"root": str(root), "bundle": bundle.name})
            if seconds is not None:
                print_run(f"level {level}, seed {seed}", result, f"own {result['own_accuracy']:.3f}", seconds)


def prepare(root: Path) -> Path:
    """Write the rows of all devices, and export the bundle unless it exists; returns its folder."""
    plan = PLANS["minilm"]
    write_rows(plan.setup, root)
    flags = ("--max-tokens", str(plan.setup.max_tokens), *plan.setup.export_flags)
    flags = (*flags, "--head-init", str(root / START_ROWS))
    flags = (*flags, "--split", "3,4,5,6", "--levels", "drop:1.0,0.5", "top:3,2,1")
    return export_once(sample_model("minilm"), root / "bundle", *flags)


def by_level(kept: Results) -> dict[str, Results]:
    """Return the kept runs of each level that has some, in the order of LEVELS."""
    found = {str(level): [run for run in kept if run["level"] == level] for level in LEVELS}
    return {level: runs for level, runs in found.items() if runs}


def less(kept: Results, level: str) -> list[float]:
    """Return by how much the accuracy of a level's runs is below full depth's, for each seed that both have."""
    full = {run["seed"]: run["accuracy_end"] for run in by_level(kept).get("6", [])}
    runs = by_level(kept)[level]
    return [full[run["seed"]] - run["accuracy_end"] for run in runs if run["seed"] in full]


def rounds_to(kept: Results, level: str) -> float | None:
    """Return the rounds until a level's mean accuracy has 95% of full depth's gain; None: never.

    Both are means over the seeds that both have run with.
    """
    levels = by_level(kept)
    return frozen_levels.rounds_to(levels.get(level, []), levels.get("6", []))


def passes_full_over_ours(kept: Results, level: str) -> float | None:
    """Return the passes of full depth to 95% of its gain over those of a level, per device; None: never there.

    A backward pass counts as two; see edge_runtime.bundle.levels.forward_passes.
    """
    ours, full = rounds_to(kept, level), rounds_to(kept, "6")
    if ours is None or full is None:
        return None
    layers = PLANS["minilm"].setup.layers
    cost = forward_passes(level if level.startswith(TOP_PREFIX) else int(level), layers)
    return full * forward_passes(layers, layers) / (ours * cost)


def table(kept: Results) -> str:
    """Return the table of the kept runs."""
    rows = []
    for level, runs in by_level(kept).items():
        seeds = ", ".join(str(run["seed"]) for run in runs)
        lost = ", ".join(f"{value:.3f}" for value in less(kept, level))
        ends = [mean_and_deviation(runs, key) for key in ("loss_end", "accuracy_end")]
        rounds, times = rounds_to(kept, level), passes_full_over_ours(kept, level)
        found = ["never" if value is None else f"{value:.1f}" for value in (rounds, times)]
        rows.append([level, seeds, *ends, lost, *found])
    return markdown_table(HEAD, rows)


def summary(kept: Results) -> dict[str, Any]:
    """Return the mean accuracy of each level at the end, and by how much it is below full depth's (same seeds)."""
    return {
        level: {
            "seeds": len(runs),
            "accuracy": round(statistics.fmean(run["accuracy_end"] for run in runs), 4),
            "loss": round(statistics.fmean(run["loss_end"] for run in runs), 4),
            "accuracy_less": round(statistics.fmean(less(kept, level)), 4) if less(kept, level) else None,
            "rounds_to_95": rounds_to(kept, level),
            "passes_full_over_ours": passes_full_over_ours(kept, level),
        }
        for level, runs in by_level(kept).items()
    }


if __name__ == "__main__":
    main()
