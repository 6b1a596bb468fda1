"""How well each method learns for its forward passes: all methods run as jobs of the real server and protocol.

Rotten Tomatoes, divided by movie: 20 devices with 8 movies each; validation and test rows are of other movies. Each
method gets the same budget of forward equivalents per device and round. Its learning rate is the best of a grid on the
validation rows (seed 0); where the best rate is at the edge of the grid, the grid is extended. Then three other seeds
run on the test rows, and their last round counts, not their best one.

A second task, 20 newsgroups divided by a skew of labels, takes the learning rates of the reviews: no setting was chosen
on it. Runs are kept in a JSON Lines file and never repeated, so the benchmark can be stopped and started at any time.

    python -m benchmarks.learning.convergence --model minilm --jobs 2           all methods, two runs at a time
    python -m benchmarks.learning.convergence --ray-address HOST:PORT           as many runs as a Ray cluster has CPUs
    python -m benchmarks.learning.convergence --model mpnet --task newsgroups   the second task, after the first
    python -m benchmarks.learning.convergence --model smollm2-lm                next-token prediction of the reviews
    python -m benchmarks.learning.convergence --model minilm --quick            three methods, one seed, about 5 minutes
    python -m benchmarks.learning.convergence --model minilm --report           table, picture and JSON of the kept runs
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.comparison import parse, parser_of, picture, quick
from benchmarks.harness.division import (
    DEVICES,
    device_names,
    held_out_file,
    rows_file,
    write_device_rows,
    write_held_out,
)
from benchmarks.harness.fleet_run import cost_of_process, fleet_run
from benchmarks.harness.on_ray import run_on
from benchmarks.harness.results import find_or_run, matches, print_run, read_results, run_program
from benchmarks.harness.spent import spent_by_round
from benchmarks.harness.tasks import REVIEWS, TASKS
from benchmarks.learning.convergence_methods import PLANS, QUICK, methods_of
from benchmarks.learning.convergence_report import draw, summarize, table
from benchmarks.learning.convergence_runs import runs_of, soonest_rate, test_runs
from server.ray_work.options import ray_options
from server.ray_work.workers import open_workers
from server.samples.reviews import completion, labelled

if TYPE_CHECKING:
    from benchmarks.harness.comparison import Setup
    from benchmarks.harness.results import Result, RunProgram
    from benchmarks.learning.convergence_methods import Method, MethodPlan

NAME = "convergence"
PROGRAM = ("-m", "benchmarks.learning.convergence")
DEVICE_ROWS = "devices"
BUNDLE = "bundle"
COHORT = 5
TUNING_SEED = 0
MOST_EXTENSIONS = 3
"""How many rates are tried beyond the edge of the grid."""


def main() -> None:
    parser = parser_of(__doc__, NAME, PLANS)
    parser.add_argument("--mode", choices=("lora", "full"), default="lora", help="what is trained (default: lora)")
    parser.add_argument("--task", choices=sorted(TASKS), default=REVIEWS, help="the rows (default: %(default)s)")
    parser.add_argument("--rates-of", metavar="MODEL", help="take the learning rates of another model, tune none")
    parser.add_argument("--methods", help="only these methods, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, a core each (default: %(default)s)")
    parser.add_argument("--ray-address", help="HOST:PORT of a Ray cluster that makes the runs, instead of --jobs")
    args = parse(parser)
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    plan = PLANS[args.model]
    methods = methods_of(plan, args.mode)
    setup = quick(plan.setup) if args.quick else plan.setup
    names = args.methods.split(",") if args.methods else list(QUICK if args.quick else methods)
    if not args.summary and not args.report:
        paths = prepare(args.model, args.mode, args.task, setup, args.workdir)
        for name in names:
            if own := methods[name].export_flags:
                key = own_bundle(name, methods[name])
                folder = Path(paths["root"]) / key
                paths[key] = export(args.model, args.mode, args.task, setup, folder, own)
        with open_workers(ray_options(None, args.ray_address)) as workers:
            run = run_program if workers is None else run_on(workers)
            comparison = Comparison(
                args.results, args.model, args.mode, args.task, plan, setup, paths, run, args.rates_of
            )
            jobs = args.jobs if workers is None else workers.number
            comparison.run({name: methods[name] for name in names}, jobs, tunes=not args.quick)
    runs = test_runs(args.results, args.model, args.mode, args.task, names)
    if args.report and runs:
        suffix = "" if args.task == REVIEWS else f"_{args.task}"
        draw(
            runs, names, f"{args.model}, {args.mode}, {args.task}", picture(f"{NAME}_{args.model}_{args.mode}{suffix}")
        )
    print(table(runs, names))
    tuned = args.rates_of or args.model
    print(summarize(args.results, args.model, args.mode, args.task, names, len(setup.seeds), tuned))


def prepare(model: str, mode: str, task: str, setup: Setup, workdir: Path) -> dict[str, str]:
    """Write the rows, and export the bundle unless it exists; returns the paths that a run needs."""
    root = workdir.resolve() / (f"{model}-{mode}" if task == REVIEWS else f"{model}-{mode}-{task}")
    division = TASKS[task].divide(setup)
    row_of = completion if PLANS[model].is_causal else labelled
    write_held_out(division, root, row_of)
    write_device_rows(division.devices, root / DEVICE_ROWS, row_of=row_of)
    return {
        "root": str(root),
        BUNDLE: export(model, mode, task, setup, root / BUNDLE),
        "model_dir": str(sample_model(model)),
    }


def own_bundle(name: str, method: Method) -> str:
    """Return the name of a method's own bundle; a row ``…-soon`` has that of the row without."""
    return f"{BUNDLE}-{method.soonest_of or name}"


def export(model: str, mode: str, task: str, setup: Setup, bundle: Path, more: tuple[str, ...] = ()) -> str:
    """Export a bundle unless it exists; return its folder. ``more`` are flags beside the setup's."""
    flags = ("--max-tokens", str(setup.max_tokens), *setup.export_flags, *more, "--train", mode)
    return str(export_once(sample_model(model), bundle, *flags, labels=TASKS[task].labels))


@dataclass(frozen=True)
class Comparison:
    """All runs with one model on one task.

    Attributes:
        results: the results file.
        model: the model's name.
        mode: what is trained: ``lora`` or ``full``.
        task: name of the task.
        plan: what is compared with the model.
        setup: the size of the comparison.
        paths: see prepare.
        make_run: makes one run.
        rates_of: the model whose learning rates are taken; None: they are tuned.
    """

    results: Path
    model: str
    mode: str
    task: str
    plan: MethodPlan
    setup: Setup
    paths: dict[str, str]
    make_run: RunProgram = run_program
    rates_of: str | None = None

    def run(self, methods: dict[str, Method], jobs: int, *, tunes: bool) -> None:
        """Run methods with each seed, at their tuned learning rates; without tuning, at the second rate of the grid.

        Args:
            methods: the methods by the names of their rows.
            jobs: how many runs are made at the same time, each in a process of its own.
            tunes: whether learning rates are tuned.
        """
        turns = Turns(threading.Semaphore(jobs), threading.Event())
        with ThreadPoolExecutor(len(methods)) as pool:
            made = [pool.submit(self._method, name, methods[name], turns, tunes) for name in methods]
            try:
                for one in made:
                    one.result()
            except BaseException:
                turns.is_over.set()  # also where this process is interrupted: runs that have begun end
                raise

    def _method(self, name: str, method: Method, turns: Turns, tunes: bool) -> None:
        """Make all runs of one method: its tuning, then each seed on the test rows."""
        rate = self._rate(name, method, turns) if tunes else method.rates[1]
        seeds = self.setup.seeds if method.depends_on_seed else self.setup.seeds[:1]
        with ThreadPoolExecutor(len(seeds)) as pool:
            list(pool.map(lambda seed: self._run(name, method, rate, seed, "test", turns), seeds))

    def _rate(self, name: str, method: Method, turns: Turns) -> float:
        """Return the tuned learning rate; on another task than the reviews, the one that was best on the reviews."""
        if len(method.rates) == 1:
            return method.rates[0]
        if method.soonest_of is not None:
            return self._soonest(name, method.soonest_of)
        if self.task == REVIEWS and self.rates_of is None:
            return self._tune(name, method, turns)
        model = self.rates_of or self.model
        wanted = {"model": model, "mode": self.mode, "name": name, "rows": "validation"}
        runs = [run for run in read_results(self.results) if matches(run, wanted) and "task" not in run]
        if not runs:
            raise SystemExit(f"{name} has no learning rate yet: run it with --model {model} --task {REVIEWS} first")
        return float(min(runs, key=lambda run: float(run["loss_end"]))["step"]["learning_rate"])

    def _soonest(self, name: str, tuned: str) -> float:
        """Return the learning rate with which a method reached MeZO's loss for the fewest forward passes."""
        model = self.rates_of or self.model
        rate = soonest_rate(runs_of(self.results, model, self.mode, REVIEWS, [tuned, "mezo"]), tuned)
        if rate is None:
            raise SystemExit(f"{name} has no learning rate yet: run mezo and {tuned} with --model {model} first")
        return rate

    def _tune(self, name: str, method: Method, turns: Turns) -> float:
        """Return the learning rate with the smallest loss on the validation rows."""
        losses: dict[float, float] = {}

        def best_of(rates: tuple[float, ...]) -> float:
            for rate in rates:
                losses[rate] = self._run(name, method, rate, TUNING_SEED, "validation", turns)["loss_end"]
            return min(losses, key=lambda rate: losses[rate])

        best = best_of(method.rates)
        for _ in range(MOST_EXTENSIONS):
            if min(losses) < best < max(losses):
                break
            # The best rate is at the edge of the grid: a better one may lie beyond.
            best = best_of((float(f"{best / 3 if best == min(losses) else best * 3:.1g}"),))
        return best

    def _run(self, name: str, method: Method, rate: float, seed: int, rows: str, turns: Turns) -> Result:
        """Return a run's result, from the file or by running it in a process of its own."""
        job = {
            "rounds": self.setup.rounds,
            "steps": method.steps,
            "batch_size": self.plan.batch_size,
            "cohort": COHORT,
            "seed": seed,
            "min_devices": DEVICES,
            "min_reports": COHORT,
            "eval_every": method.eval_every.get(rows, self.setup.eval_every),
            "method": method.method,
            **method.job,
            "split": method.split or self.plan.split,
        }
        step = {**method.step, "learning_rate": rate}
        key = {"model": self.model, "mode": self.mode, "name": name, "rows": rows, "job": job, "step": step}
        if self.task != REVIEWS:
            key["task"] = self.task  # runs of the reviews were kept before there was another task
        layers = self.setup.layers + self.plan.output_layers
        bundle = self.paths[own_bundle(name, method) if method.export_flags else BUNDLE]
        more = {**self.paths, BUNDLE: bundle, "layers": layers, "max_tokens": self.setup.max_tokens}
        with turns:
            result, seconds = find_or_run(self.results, PROGRAM, key, more, self.make_run)
        if seconds is not None:
            label = f"{name:14} rate {rate:<6} seed {seed} {rows:10}"
            print_run(label, result, f"{result['forwards']:.0f} forwards", seconds)
        return result


@dataclass(frozen=True)
class Turns:
    """Lets a limited number of runs happen at the same time, and none once a run has failed.

    Attributes:
        free: how many more may begin.
        is_over: whether no other one begins.
    """

    free: threading.Semaphore
    is_over: threading.Event

    def __enter__(self) -> None:
        self.free.acquire()
        if self.is_over.is_set():
            self.free.release()
            raise SystemExit("another run has failed")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.is_over.set()
        self.free.release()


def run_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job: the settings are the run's key in the results file, and the paths."""
    root = Path(settings["root"])
    devices = {name: rows_file(root / DEVICE_ROWS, name) for name in device_names()}
    test = held_out_file(root, settings["rows"])
    if settings["job"]["method"] == "backprop":
        from benchmarks.learning.backprop import run_backprop

        return run_backprop(settings, devices, test)
    if settings["job"]["method"] == "probe":
        from benchmarks.learning.probes import run_probes

        return run_probes(settings, devices, test)
    fields = {"eval_file": str(test), **settings["job"]}
    with fleet_run(root, Path(settings["bundle"]), fields, {"step": settings["step"]}, devices) as ran:
        summary = ran.summary
        spent = spent_by_round(ran, settings["layers"])
        evaluated = [spent[index] for index in ran.evaluated_rounds()]
        curve = ran.curve(lambda index: spent[index].forwards)
    return {
        **ran.start_and_end(),
        "forwards": round(spent[max(spent)].forwards, 1),
        "curve": curve,
        "seconds": [round(at.seconds, 2) for at in evaluated],
        "bytes": [at.bytes_moved for at in evaluated],
        "bytes_up_per_device_round": round(summary["bytes_up_per_device_round"]),
        "bytes_down_per_device_round": round(summary["bytes_down_per_device_round"]),
        **cost_of_process(ran.wall_s),
    }


if __name__ == "__main__":
    main()
