"""How well each method learns for its forward passes: all methods run as jobs of the real server and protocol.

Rotten Tomatoes, divided by movie: 20 devices with 8 movies each; validation and test rows are of other movies. Each
method gets the same budget of forward equivalents per device and round. Its learning rate is the best of a grid on the
validation rows (seed 0); where the best rate is at the edge of the grid, the grid is extended. Then three other seeds
run on the test rows, and their last round counts, not their best one.

Runs are kept in a JSON Lines file and never repeated, so the benchmark can be stopped and started at any time.

    python -m benchmarks.learning.convergence --model minilm            all methods
    python -m benchmarks.learning.convergence --model minilm --quick    three methods, one seed, about 5 minutes
    python -m benchmarks.learning.convergence --model minilm --report   tables and picture of the kept runs
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.comparison import Setup, parse, parser_of, picture, quick
from benchmarks.harness.division import (
    DEVICES,
    device_names,
    divide_by_movie,
    held_out_file,
    rows_file,
    write_device_rows,
    write_held_out,
)
from benchmarks.harness.fleet_run import JOB, cost_of_process, fleet_run
from benchmarks.harness.results import find_or_run, print_run
from benchmarks.learning.convergence_methods import PLANS, QUICK, methods_of
from benchmarks.learning.convergence_report import draw, summarize, table, test_runs
from server.storage.queries import passes_per_round

if TYPE_CHECKING:
    from benchmarks.harness.results import Result
    from benchmarks.learning.convergence_methods import Method

NAME = "convergence"
PROGRAM = ("-m", "benchmarks.learning.convergence")
DEVICE_ROWS = "devices"
COHORT = 5
TUNING_SEED = 0
MOST_EXTENSIONS = 3
"""How many rates are tried beyond the edge of the grid."""


def main() -> None:
    parser = parser_of(__doc__, NAME, PLANS)
    parser.add_argument("--mode", choices=("lora", "full"), default="lora", help="what is trained (default: lora)")
    parser.add_argument("--methods", help="only these methods, separated by commas")
    args = parse(parser)
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    plan = PLANS[args.model]
    methods = methods_of(plan, args.mode)
    setup = quick(plan.setup) if args.quick else plan.setup
    names = args.methods.split(",") if args.methods else list(QUICK if args.quick else methods)
    if args.report:
        runs = test_runs(args.results, args.model, args.mode, names)
        if runs:
            draw(runs, names, f"{args.model}, {args.mode}", picture(f"{NAME}_{args.model}_{args.mode}"))
        print(table(runs, names))
        return
    if not args.summary:
        paths = prepare(args.model, args.mode, setup, args.workdir)
        comparison = Comparison(args.results, args.model, args.mode, setup, plan.split, plan.batch_size, paths)
        for name in names:
            comparison.run(name, methods[name], tunes=not args.quick)
    summarize(args.results, args.model, args.mode, names)


def prepare(model: str, mode: str, setup: Setup, workdir: Path) -> dict[str, str]:
    """Write the rows, and export the bundle unless it exists; returns the paths that a run needs."""
    root = workdir / f"{model}-{mode}"
    division = divide_by_movie(setup)
    write_held_out(division, root)
    write_device_rows(division.devices, root / DEVICE_ROWS)
    model_dir = sample_model(model)
    flags = ("--max-tokens", str(setup.max_tokens), *setup.export_flags, "--train", mode)
    bundle = export_once(model_dir, root / "bundle", *flags)
    return {"root": str(root), "bundle": str(bundle), "model_dir": str(model_dir)}


@dataclass(frozen=True)
class Comparison:
    """All runs with one model.

    Attributes:
        results: the results file.
        model: the model's name.
        mode: what is trained: ``lora`` or ``full``.
        setup: the size of the comparison.
        split: the split of methods that name none.
        batch_size: rows per step.
        paths: see prepare.
    """

    results: Path
    model: str
    mode: str
    setup: Setup
    split: int
    batch_size: int
    paths: dict[str, str]

    def run(self, name: str, method: Method, *, tunes: bool) -> None:
        """Run a method with each seed, at its tuned learning rate; without tuning, at the second rate of its grid."""
        rate = self._tune(name, method) if tunes else method.rates[1]
        for seed in self.setup.seeds:
            self._run(name, method, rate, seed, "test")

    def _tune(self, name: str, method: Method) -> float:
        """Return the learning rate with the smallest loss on the validation rows."""
        losses: dict[float, float] = {}

        def best_of(rates: tuple[float, ...]) -> float:
            for rate in rates:
                losses[rate] = self._run(name, method, rate, TUNING_SEED, "validation")["loss_end"]
            return min(losses, key=lambda rate: losses[rate])

        best = best_of(method.rates)
        for _ in range(MOST_EXTENSIONS):
            if min(losses) < best < max(losses):
                break
            # The best rate is at the edge of the grid: a better one may lie beyond.
            best = best_of((float(f"{best / 3 if best == min(losses) else best * 3:.1g}"),))
        return best

    def _run(self, name: str, method: Method, rate: float, seed: int, rows: str) -> Result:
        """Return a run's result, from the file or by running it in a process of its own."""
        job = {
            "rounds": self.setup.rounds,
            "steps": method.steps,
            "batch_size": self.batch_size,
            "cohort": COHORT,
            "seed": seed,
            "min_devices": DEVICES,
            "min_reports": COHORT,
            "eval_every": self.setup.eval_every,
            "method": method.method,
            **method.job,
            "split": method.split or self.split,
        }
        step = {**method.step, "learning_rate": rate}
        key = {"model": self.model, "mode": self.mode, "name": name, "rows": rows, "job": job, "step": step}
        result, seconds = find_or_run(self.results, PROGRAM, key, {**self.paths, "layers": self.setup.layers})
        if seconds is not None:
            label = f"{name:14} rate {rate:<6} seed {seed} {rows:10}"
            print_run(label, result, f"{result['forwards']:.0f} forwards", seconds)
        return result


def run_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job: the settings are the run's key in the results file, and the paths."""
    root = Path(settings["root"])
    devices = {name: rows_file(root / DEVICE_ROWS, name) for name in device_names()}
    test = held_out_file(root, settings["rows"])
    if settings["job"]["method"] == "backprop":
        from benchmarks.learning.backprop import run_backprop

        return run_backprop(settings, devices, test)
    fields = {"eval_file": str(test), **settings["job"]}
    with fleet_run(root, Path(settings["bundle"]), fields, {"step": settings["step"]}, devices) as ran:
        summary = ran.summary
        share = ran.fitted.split / settings["layers"]
        forwards, spent = 0.0, {}
        for index, (front, back) in passes_per_round(ran.ledger, JOB).items():
            forwards += front * share + back * (1 - share)
            spent[index] = forwards
        curve = ran.curve(lambda index: spent[index])
    return {
        **ran.start_and_end(),
        "forwards": round(forwards, 1),
        "curve": curve,
        "bytes_up_per_device_round": round(summary["bytes_up_per_device_round"]),
        "bytes_down_per_device_round": round(summary["bytes_down_per_device_round"]),
        **cost_of_process(ran.wall_s),
    }


if __name__ == "__main__":
    main()
