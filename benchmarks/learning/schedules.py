"""What schedules over kinds of devices and over the front are worth, on the rows and with the settings of droppeft.py.

Hybrid fleets (5 of 20 devices backpropagate, the others are forward-only, 8 take part in a round, 15 rounds): the
forward-only devices begin in the first round, after half of the rounds, after two thirds, or never. Before they begin,
the 5 backprop devices train alone, all in each round. Forward-only fleets (15 devices, 6 a round, split behind the last
layer): the front is trained from the first round, after a third or half of the rounds, or never.

Learning rates are those of droppeft.py: 0.003 for backpropagation, tuned there on validation rows, and 0.03 for
forward-only steps; none was tuned for a schedule. Rows, bundle and results file's format are those of top_levels.py.
Entries that droppeft.py has run already (``hybrid-by-examples``, ``few-backprop``, ``forward``) are read from its file.

    python -m benchmarks.learning.schedules [--entries NAME,…] [--seeds 1,2,3]     one or two minutes a run
    python -m benchmarks.learning.schedules --report                               the table and JSON of the kept runs
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.harness.results import find_or_run, matches, print_run, read_results
from benchmarks.harness.tables import markdown_table, mean_and_deviation
from benchmarks.learning.droppeft_report import difference
from benchmarks.learning.droppeft_run import FORWARD_ROWS, FORWARD_STEPS, KINDS
from benchmarks.learning.droppeft_variants import BACKPROP_DEVICES, COHORTS, PLANS
from benchmarks.learning.top_levels import RATE, prepare
from edge_runtime.bundle.levels import forward_passes

if TYPE_CHECKING:
    from benchmarks.harness.results import Result, Results
    from benchmarks.learning.droppeft_variants import Fleet

PROGRAM = ("-m", "benchmarks.learning.droppeft")
MODEL = "minilm"
ROUNDS = 15
EVAL_EVERY = 5
FULL, HALF = 6, 3
"""Levels of the backprop devices: layers of MiniLM that are active."""
_SIGNS = 2
"""Front passes in a step of droppeft.py's forward-only devices; a back pass runs no layer."""
HEAD = ("entry", "seeds", "held-out loss", "accuracy", "accuracy less that of", "row passes, backprop and forward-only")


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        fleet: a fleet of droppeft_variants: ``hybrid`` or ``forward``.
        base: the entry that it is compared with, of this module or of droppeft.py.
        rounds: rounds of the job.
        level: of the backprop devices.
        forward_from: the round from which forward-only devices take part.
        front: of the job.
    """

    fleet: Fleet
    base: str
    rounds: int = ROUNDS
    level: int = FULL
    forward_from: int = 0
    front: str = "train"


ENTRIES = {
    "frozen": Entry("forward", "forward", front="frozen"),
    "train-after-half": Entry("forward", "forward", front="train-after:7"),
    "half-depth-backprop-half": Entry("hybrid", "hybrid-by-examples", level=HALF, forward_from=7),
    "half-depth-backprop-two-thirds": Entry("hybrid", "hybrid-by-examples", level=HALF, forward_from=10),
    "half-depth-backprop-alone": Entry("hybrid", "hybrid-by-examples", level=HALF, forward_from=ROUNDS),
    "backprop-alone": Entry("hybrid", "hybrid", forward_from=ROUNDS),
    "backprop-two-thirds": Entry("hybrid", "hybrid", forward_from=10),
    "hybrid": Entry("hybrid", "hybrid"),
    "backprop-half": Entry("hybrid", "hybrid", forward_from=7),
    # As many row passes as `forward`, which trains the front in each of its 15 rounds.
    "frozen-60-rounds": Entry("forward", "forward", rounds=60, front="frozen"),
    "train-after-third-20-rounds": Entry("forward", "forward", rounds=20, front="train-after:6"),
    "train-after-half-28-rounds": Entry("forward", "forward", rounds=28, front="train-after:14"),
}
"""The entries, in the order in which they run."""
KEPT_BEFORE = ("hybrid-by-examples", "few-backprop", "forward")
"""Entries of droppeft.py with as many rounds."""


def main() -> None:
    results = ROOT / "benchmarks" / "results" / "schedules.jsonl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", help="only these entries, separated by commas")
    parser.add_argument("--seeds", default="1,2,3", help="seeds, separated by commas (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=ROOT / ".covey" / "top_levels", help="bundle and rows")
    parser.add_argument("--report", action="store_true", help="run nothing, print the table of the kept runs")
    args = parser.parse_args()
    if not args.report:
        names = list(ENTRIES) if args.entries is None else args.entries.split(",")
        run_all(results, args.workdir, names, [int(seed) for seed in args.seeds.split(",")])
    runs = kept(read_results(results), read_results(results.with_name("droppeft.jsonl")))
    print(table(runs))
    print(json.dumps({**summary(runs), **provenance()}))


def run_all(results: Path, root: Path, names: list[str], seeds: list[int]) -> None:
    """Make all runs that are not in the results file yet, an entry after the other."""
    bundle = prepare(root)
    for name in names:
        for seed in seeds:
            key = key_of(name, seed)
            result, seconds = find_or_run(results, PROGRAM, key, {"root": str(root), "bundle": bundle.name})
            if seconds is not None:
                print_run(f"{name}, seed {seed}", result, f"own {result['own_accuracy']:.3f}", seconds)


def key_of(name: str, seed: int) -> dict[str, Any]:
    """Return the settings that identify a run; droppeft_run makes a job of them."""
    entry, plan = ENTRIES[name], PLANS[MODEL]
    key: dict[str, Any] = {
        "model": MODEL,
        "division": "movie",
        "rows": "test",
        "name": name,
        "seed": seed,
        "rounds": entry.rounds,
        "eval_every": EVAL_EVERY,
        "fleet": entry.fleet,
        "step": plan.step,
    }
    if entry.fleet == "forward":
        return {**key, "job": {"front": entry.front}}
    stld = {**plan.stld, "learning_rate": RATE, "merging": "examples", "forward_from": entry.forward_from}
    # Before forward-only devices begin, a round has fewer reports than its cohort.
    return {**key, "level": entry.level, "stld": stld, "job": {"min_reports": BACKPROP_DEVICES}}


def kept(own: Results, before: Results) -> dict[str, Results]:
    """Return the kept runs of each entry that has some, one for each seed, with those of droppeft.py in front."""
    found: dict[str, Results] = {}
    for name in KEPT_BEFORE:
        wanted = {"model": MODEL, "name": name, "division": "movie", "rows": "test"}
        found[name] = [run for run in before if matches(run, wanted)]
    for name in ENTRIES:
        found[name] = [run for run in own if any(matches(run, key_of(name, seed)) for seed in (1, 2, 3))]
    return {name: runs for name, runs in found.items() if runs}


def base_of(name: str) -> str | None:
    """Return the entry with which another one is compared; None: it is compared with none."""
    base = ENTRIES[name].base if name in ENTRIES else name
    return None if base == name else base


def row_passes(run: Result) -> dict[str, float]:
    """Return the passes of a row through the whole model, by kind of device; a backward pass counts as two.

    A run of droppeft.py that did not count them gets what its settings give: a hybrid round has as many devices
    of a kind, on average, as in a round of that kind alone.
    """
    if "row_passes" in run:
        return {kind: float(passes) for kind, passes in run["row_passes"].items()}
    stld, fleet, layers = run["stld"], run["fleet"], PLANS[MODEL].setup.layers
    backprop = 0 if fleet == "forward" else run["rounds"] * COHORTS["few-backprop"]
    forward = 0 if fleet == "few-backprop" else run["rounds"] * COHORTS["forward"]
    row_cost = forward_passes(run["level"], layers)
    return {
        "backprop": backprop * stld["steps"] * stld["batch_size"] * row_cost,
        "forward-only": float(forward * FORWARD_STEPS * FORWARD_ROWS * _SIGNS),
    }


def table(runs: dict[str, Results]) -> str:
    """Return the table of the kept runs."""
    rows = []
    for name, own in runs.items():
        base = base_of(name)
        less = None if base is None else difference(own, runs.get(base, []), "accuracy_end")
        rows.append(
            [
                f"`{name}`",
                ", ".join(str(run["seed"]) for run in own),
                mean_and_deviation(own, "loss_end"),
                mean_and_deviation(own, "accuracy_end"),
                "–" if less is None else f"`{base}`: {less[0]:+.3f}" + ("" if less[1] is None else f" ± {less[1]:.3f}"),
                ", ".join(f"{_mean_passes(own, kind):,.0f}" for kind in KINDS),
            ]
        )
    return markdown_table(HEAD, rows)


def summary(runs: dict[str, Results]) -> dict[str, Any]:
    """Return each entry's mean figures, and those less its base's (paired by seed, with the standard error)."""
    return {name: _figures(own, runs.get(base_of(name) or "", [])) for name, own in runs.items()}


def _figures(own: Results, base: Results) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seeds": len(own),
        "accuracy": round(statistics.fmean(run["accuracy_end"] for run in own), 4),
        "loss": round(statistics.fmean(run["loss_end"] for run in own), 4),
    }
    for key in ("accuracy_end", "loss_end"):
        less = difference(own, base, key)
        found[f"{key}_less_base"] = None if less is None else [_rounded(value) for value in less]
    total, of_base = (sum(_mean_passes(runs, kind) for kind in KINDS) if runs else None for runs in (own, base))
    found["row_passes_over_base"] = round(total / of_base, 4) if total and of_base else None
    return found


def _mean_passes(runs: Results, kind: str) -> float:
    return statistics.fmean(row_passes(run)[kind] for run in runs)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
