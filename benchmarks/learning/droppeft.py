"""What layer dropout, personal layers and hybrid rounds are worth: many small jobs on the real server and protocol.

Rotten Tomatoes on 20 devices, divided by movie (8 movies each) or with skewed labels (Dirichlet 0.1, 1, 10). Every
fifth row of a device tests its own model; the server evaluates on rows of other movies. Unless its name says otherwise,
a variant makes the same local steps in the same rounds as the others, so that levels differ only in what a step costs.
These costs are measured once per machine, all levels in turn, in CPU seconds of one thread, which hardly depend on
other work on the machine. Learning rates are tuned on validation rows (mean loss of three seeds) for full depth and for
half depth, and the other levels take the rate of half depth. Then three other seeds run, and their last round counts.
(SmolLM2 has one rate, which convergence.py found for backpropagation.)

Runs are kept in a JSON Lines file and never repeated, so the benchmark can be stopped and started at any time. The most
informative ones run first.

    python -m benchmarks.learning.droppeft --model minilm             all variants, about two hours of a core (--jobs 2)
    python -m benchmarks.learning.droppeft --model minilm --quick     three variants, one seed, some minutes
    python -m benchmarks.learning.droppeft --model minilm --report    tables and picture of the kept runs
"""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.comparison import parse, parser_of, picture, quick
from benchmarks.harness.division import START_ROWS
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import find_or_run, print_run, read_results
from benchmarks.learning.droppeft_costs import costs
from benchmarks.learning.droppeft_report import draw, summary, tables
from benchmarks.learning.droppeft_rows import most_frequent_label_accuracy, write_rows
from benchmarks.learning.droppeft_run import run_one
from benchmarks.learning.droppeft_variants import DIVISIONS, PLANS, QUICK_PLAN, VARIANTS
from edge_runtime.bundle.manifest_file import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.results import Result
    from benchmarks.learning.droppeft_variants import VariantPlan

NAME = "droppeft"
PROGRAM = ("-m", "benchmarks.learning.droppeft")
TUNING_SEEDS = (0, 4, 5)


def main() -> None:
    parser = parser_of(__doc__, NAME, PLANS)
    parser.add_argument("--entries", help="only these variants, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, a core each (default: %(default)s)")
    args = parse(parser)
    if args.one:
        print(json.dumps(run_one(json.loads(args.one))))
        return
    plan = PLANS[args.model]
    if args.quick:
        plan = dataclasses.replace(plan, setup=quick(plan.setup), rates=plan.rates[:1], variants=QUICK_PLAN)
    more: dict[str, Any] = {}
    if not args.summary and not args.report:
        root = args.workdir / args.model
        Comparison(args.results, args.model, plan, root).run(args.entries and args.entries.split(","), args.jobs)
        more["own_rows_most_frequent_label"] = {
            name: round(most_frequent_label_accuracy(root / name), 3) for name in DIVISIONS
        }
    order = list(VARIANTS)
    results = [result for result in read_results(args.results) if result["model"] == args.model]
    results.sort(key=lambda result: order.index(result["name"]) if "name" in result else -1)
    if args.report:
        draw(results, picture(f"{NAME}_{args.model}"))
    print(tables(results))
    print(json.dumps({"model": args.model, **summary(results), **more, **provenance()}))


@dataclass(frozen=True)
class Comparison:
    """All runs with one model.

    Attributes:
        results: the results file.
        model: the model's name.
        plan: what runs.
        root: the folder of bundles and rows.
    """

    results: Path
    model: str
    plan: VariantPlan
    root: Path

    def run(self, only: list[str] | None, jobs: int) -> None:
        """Make all runs that are not in the results file yet.

        Args:
            only: names of variants; None: all.
            jobs: how many run at the same time, on one core each.
        """
        write_rows(self.plan.setup, self.root)
        bundle = self._export("bundle")
        costs(self.model, self.plan, bundle, self.results)
        wanted = [
            (division, name, seed)
            for division, names in self.plan.variants
            for seed in self.plan.setup.seeds
            for name in names
            if only is None or name in only
        ]
        for name in sorted({VARIANTS[name].bundle for _, name, _ in wanted}):
            self._export(name)
        with ThreadPoolExecutor(jobs) as pool:
            rates = self._tune(pool, sorted({VARIANTS[name].rate for _, name, _ in wanted}))
            runs = [
                pool.submit(self._run, division, name, rates[VARIANTS[name].rate], seed, "test")
                for division, name, seed in wanted
            ]
            try:
                for run in runs:
                    run.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _export(self, name: str) -> Path:
        """Return a bundle, which is exported unless it exists; ``bundle-rescale`` has half depth only."""
        setup = self.plan.setup
        head = ("--head-init", str(self.root / START_ROWS)) if setup.start_movies else ()
        shares = ",".join(map(str, self.plan.shares()))
        levels = ("--levels", "0.5", "--rescale") if name == "bundle-rescale" else ("--levels", shares)
        flags = ("--max-tokens", str(setup.max_tokens), *setup.export_flags, *head, *levels)
        return export_once(sample_model(self.model), self.root / name, *flags)

    def _tune(self, pool: ThreadPoolExecutor, names: list[str]) -> dict[str, float]:
        """Return the best learning rate of each variant: the one with the smallest mean loss on validation rows."""
        rates = self.plan.rates
        if len(rates) == 1:
            return dict.fromkeys(names, rates[0])
        runs = {
            (name, rate): [pool.submit(self._run, "movie", name, rate, seed, "validation") for seed in TUNING_SEEDS]
            for name in names
            for rate in rates
        }
        losses = {key: sum(run.result()["loss_end"] for run in tried) for key, tried in runs.items()}
        return {name: min(rates, key=lambda rate: losses[name, rate]) for name in names}

    def _run(self, division: str, name: str, rate: float, seed: int, rows: str) -> Result:
        """Return a run's result, from the file or by running it in a process of its own."""
        plan, variant = self.plan, VARIANTS[name]
        key = {
            "model": self.model,
            "bundle_sha256": read_manifest(self.root / variant.bundle)[1],
            "name": name,
            "division": division,
            "rows": rows,
            "seed": seed,
            "rounds": round(variant.rounds_factor * plan.setup.rounds),
            "eval_every": max(1, round(variant.rounds_factor * plan.setup.eval_every)),
            "level": max(1, round(variant.share * plan.setup.layers)),
            "fleet": variant.fleet,
            "step": plan.step,
            "stld": {**plan.stld, "learning_rate": rate, **variant.stld},
        }
        result, seconds = find_or_run(self.results, PROGRAM, key, {"root": str(self.root), "bundle": variant.bundle})
        if seconds is not None:
            label = f"{division:13} {name:22} rate {rate:<6} seed {seed} {rows:10}"
            print_run(label, result, f"own {result['own_accuracy']:.3f}", seconds)
        return result


if __name__ == "__main__":
    main()
