"""What each switch of the step rule gives: the same task, the same budget of forward passes, with it and without it.

Twenty devices, five in a round, real steps and the real replay in one process. Each variant gets the same number of
forward equivalents per device and round (a front pass counts by its share of the layers), and the best learning rate of
a grid on the validation rows (seed 0), extended where the best one is at its edge. ``lora`` and ``lora-init`` (the same
with A from activations), which take minutes a run, have the rate that convergence.py found for the plain rule. Three
other seeds then run on the test rows; the loss after the last round counts. A bowl's loss is a share of the loss at the
start.

Runs are kept in a JSON Lines file and never repeated, so the benchmark can be stopped and started at any time. The
tasks are even, few, steep (bowls), head, lora and lora-init.

    python -m benchmarks.learning.switches --task head         every variant on one task
    python -m benchmarks.learning.switches --report            a table of the kept runs; the last line is JSON
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.harness.results import Results, add_result, matches, read_results
from benchmarks.harness.tables import markdown_table
from benchmarks.learning.switches_tasks import Task, task_of
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.forward_only.moment import shape_of
from edge_runtime.forward_only.replay import compact, mean_square_of, replay
from edge_runtime.forward_only.round import RoundSettings, train_round
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, pack_scalars
from edge_runtime.protocol.step_rule import StepRule

TASKS = ("even", "few", "steep", "head", "lora", "lora-init")
COHORT = 5
SEEDS, TUNING_SEED = (1, 2, 3), 0
MOST_EXTENSIONS = 3
RATES: dict[str, tuple[float, ...]] = {"even": (0.02, 0.06, 0.2), "few": (0.02, 0.06, 0.2), "steep": (0.02, 0.06, 0.2)}
RATES |= {"head": (0.01, 0.03, 0.1), "lora": (0.015,), "lora-init": (0.015,)}


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        step: fields of ``[step]``, beside a P2 of 4.
        momentum: the server's momentum.
        knows: the preconditioner is this power of the task's curvature, where that is known; None: what was seen.
    """

    step: dict[str, Any] = field(default_factory=dict)
    momentum: float = 0.0
    knows: float | None = None


VARIANTS = {
    "plain": Variant(),
    "curvature": Variant({"curvature": {}}),
    "curvature, slow": Variant({"curvature": {"decay": 0.98, "floor": 0.3}}),
    "true curvature": Variant({"curvature": {"decay": 0.0, "floor": 1e-4}}, knows=1.0),
    "root of true curvature": Variant({"curvature": {"decay": 0.0, "floor": 1e-4}}, knows=0.5),
    "momentum": Variant(momentum=0.7),
    "sign momentum": Variant({"sign_momentum": 0.7}),
    "best 2 of 4": Variant({"keep_directions": 2}),
    "best 4 of 16": Variant({"back_perturbations": 16, "keep_directions": 4}),
    "shared": Variant({"shared_directions": True}),
    "shared, curvature": Variant({"shared_directions": True, "curvature": {}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="(default: all of them)")
    parser.add_argument("--variants", help="only these, separated by semicolons (default: all)")
    parser.add_argument("--report", action="store_true", help="run nothing, print a table of the kept runs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "switches.jsonl")
    parser.add_argument("--workdir", type=Path, default=ROOT / ".covey" / "convergence", help="bundles and rows")
    args = parser.parse_args()
    names = args.variants.split(";") if args.variants else list(VARIANTS)
    tasks = [args.task] if args.task else list(TASKS)
    if not args.report:
        for task in tasks:
            comparison = Comparison(args.results, task, task_of(task, args.workdir))
            for name in names:
                if VARIANTS[name].knows is None or comparison.task.curvature is not None:
                    comparison.run(name)
    print(report(read_results(args.results), tasks))


@dataclass(frozen=True)
class Comparison:
    """All runs of one task; see main."""

    results: Path
    name: str
    task: Task

    def run(self, name: str) -> None:
        """Tune a variant's learning rate, and run it with each seed on the test rows."""
        rate = self._tune(name)
        for seed in SEEDS:
            self._run(name, rate, seed, "test")

    def _tune(self, name: str) -> float:
        losses: dict[float, float] = {}

        def best_of(rates: tuple[float, ...]) -> float:
            for rate in rates:
                losses[rate] = self._run(name, rate, TUNING_SEED, "validation")["loss_end"]
            return min(losses, key=lambda rate: losses[rate])

        if len(RATES[self.name]) == 1:
            return RATES[self.name][0]
        best = best_of(RATES[self.name])
        for _ in range(MOST_EXTENSIONS):
            if min(losses) < best < max(losses):
                break
            best = best_of((float(f"{best / 3 if best == min(losses) else best * 3:.1g}"),))
        return best

    def _run(self, name: str, rate: float, seed: int, rows: str) -> dict[str, Any]:
        variant = VARIANTS[name]
        step = {"back_perturbations": 4, **variant.step, "learning_rate": rate}
        key = {
            "task": self.name,
            "name": name,
            "rows": rows,
            "seed": seed,
            "step": step,
            "momentum": variant.momentum,
            "rounds": self.task.rounds,
            "budget": self.task.budget,
        }
        kept = next((result for result in read_results(self.results) if matches(result, key)), None)
        if kept is not None:
            return kept
        started = time.monotonic()
        found = run_job(self.task, msgspec.convert(step, StepRule), variant, seed, rows)
        result = {**key, **found, "seconds": round(time.monotonic() - started, 1), **provenance()}
        add_result(self.results, result)
        print(
            f"{self.name:6} {name:18} rate {rate:<6} seed {seed} {rows:10}  loss {result['loss_start']:.4f} → "
            f"{result['loss_end']:.4f}  {result['forwards']:.0f} forwards  {result['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return result


def steps_of(task: Task, rule: StepRule) -> int:
    """Return the number of steps per round that the budget buys."""
    fronts = 2 * rule.front_perturbations if task.front_size else 0
    cost = fronts * task.front_share + 2 * rule.back_directions * (1 - task.front_share)
    return max(1, int(task.budget / cost + 1e-9))


def run_job(task: Task, rule: StepRule, variant: Variant, seed: int, rows: str) -> dict[str, Any]:
    """Run a job, and return its losses and what it cost: forward equivalents of all devices."""
    steps = steps_of(task, rule)
    chosen = np.random.Generator(np.random.PCG64(seed))
    theta, previous, moment = task.start, None, np.zeros_like(task.start)
    mean_square, forwards = None, 0.0
    for index in range(task.rounds):
        left = (task.rounds - index) / task.rounds
        now = msgspec.structs.replace(rule, learning_rate=rule.learning_rate * left)
        if variant.knows is not None and task.curvature is not None:
            known = task.curvature**variant.knows
            moment[:] = known / known.mean()
        shape = shape_of(now, moment, index)
        devices, scalars = [], []
        for device in sorted(chosen.choice(task.devices, COHORT, replace=False).tolist()):
            settings = RoundSettings(
                seed, index, f"device-{device:02}", now, steps, task.batch_size, mean_square, shape=shape
            )
            result = train_round(task.engine(device), theta, task.rows(device), settings)
            assert result is not None  # noqa: S101 nothing stops it
            devices.append(DeviceScalars(settings.device, 1 / COHORT, pack_scalars(result.scalars.ravel())))
            scalars.append(result.scalars.tolist())
            forwards += result.front_passes * task.front_share + result.back_passes * (1 - task.front_share)
        log = log_of(task, now, variant.momentum, (seed, index, steps, mean_square), devices)
        if variant.momentum and previous is not None:
            log = msgspec.structs.replace(log, previous_sha256=adapter_sha256(previous))
        theta, previous = replay(theta, compact(log), previous, moment), theta
        mean_square = mean_square_of(scalars)
    return {
        "loss_start": round(task.loss(task.start, rows), 6),
        "loss_end": round(task.loss(theta, rows), 6),
        "forwards": round(forwards, 1),
    }


def log_of(
    task: Task,
    rule: StepRule,
    momentum: float,
    where: tuple[int, int, int, float | None],
    devices: list[DeviceScalars],
) -> RoundLog:
    """Return a round's log; ``where``: the job's seed, the round, the steps, the last round's mean square."""
    seed, index, steps, mean_square = where
    nobody = "0" * 64
    return RoundLog(
        job="job",
        job_seed=seed,
        round=index,
        rule=rule,
        front_size=task.front_size,
        steps=steps,
        mean_square=mean_square,
        momentum=momentum,
        previous_sha256=None,
        base_sha256=nobody,
        result_sha256=nobody,
        devices=devices,
        terms=None,
    )


def report(results: Results, tasks: list[str]) -> str:
    """Return a Markdown table of final losses on the test rows, and a line of JSON with what each differs by."""
    runs = {(run["task"], run["name"], run["seed"]): run for run in results if run["rows"] == "test"}
    apart: dict[str, list[float]] = {}
    rows = []
    for name in VARIANTS:
        cells = []
        for task in tasks:
            mine = [runs[task, name, seed] for seed in SEEDS if (task, name, seed) in runs]
            cells.append(cell_of(mine))
            rule = "lora" if task == "lora-init" else task  # whose plain rule it is compared with
            plain = [runs[key]["loss_end"] for run in mine if (key := (rule, "plain", run["seed"])) in runs]
            if len(plain) == len(mine) > 0:
                less = [round(run["loss_end"] - other, 4) for run, other in zip(mine, plain, strict=True)]
                apart[f"{task}: {name}"] = less
        if any(cells):
            rows.append((name, *cells))
    return markdown_table(("variant", *tasks), rows) + "\n\n" + json.dumps({"loss_less_the_plain_rules": apart})


def cell_of(runs: Results) -> str:
    """Return the mean ± the standard deviation of final losses over seeds, and the learning rate; empty: no runs."""
    if not runs:
        return ""
    losses = [run["loss_end"] for run in runs]
    spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    return f"{statistics.fmean(losses):.4f}{spread} ({runs[0]['step']['learning_rate']:g})"


if __name__ == "__main__":
    main()
