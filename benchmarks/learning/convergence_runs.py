"""What follows from kept runs of convergence.py by arithmetic alone: savings, areas, core hours, what was not run."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.harness.curves import LOSS, first_at
from benchmarks.harness.results import matches, read_results
from benchmarks.harness.tasks import REVIEWS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.curves import Curve
    from benchmarks.harness.results import Result, Results

FORWARDS, SECONDS, BYTES = AXES = ("forward equivalents", "seconds of training", "bytes moved")
"""What is spent, by all devices together."""


def runs_of(path: Path, model: str, mode: str, task: str, names: list[str]) -> Results:
    """Return all runs of some methods: those of tuning, and those on the test rows."""
    wanted = {"model": model, "mode": mode}
    return [
        run
        for run in read_results(path)
        if matches(run, wanted) and run.get("task", REVIEWS) == task and run["name"] in names
    ]


def test_runs(path: Path, model: str, mode: str, task: str, names: list[str]) -> Results:
    """Return the runs of some methods on the test rows."""
    return [run for run in runs_of(path, model, mode, task, names) if run["rows"] == "test"]


def of_method(results: Results, name: str) -> Results:
    """Return the runs of one method."""
    return [run for run in results if run["name"] == name]


def by_seed(results: Results, name: str) -> dict[int, Result]:
    """Return the newest run of each seed of one method; an older one may be of other settings."""
    return {run["job"]["seed"]: run for run in of_method(results, name)}


def spent_of(run: Result, axis: str) -> list[float] | None:
    """Return what a run had spent at each point of its curve, on one of AXES; None: the run did not measure it."""
    if axis == FORWARDS:
        return [p[0] for p in run["curve"]]
    return run.get("seconds" if axis == SECONDS else "bytes")


def mean_loss(run: Result) -> float:
    """Return the mean held-out loss over what was spent: the area under the curve, divided by its length."""
    points = [(0.0, run["loss_start"]), *((p[0], p[LOSS]) for p in run["curve"])]
    pairs = list(itertools.pairwise(points))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
    return float(area / points[-1][0])


def saving(
    results: Results, rival: str, ours: str, goal: str | None = None, axis: str = FORWARDS
) -> dict[str, Any] | None:
    """Return what a rival spends to a loss over what our method spends, seed by seed.

    Both are read off the evaluations in the same way: linear between two of them; where the first one has already
    reached the loss, all that was spent until then counts.

    Args:
        results: runs on the test rows.
        rival: name of the rival.
        ours: name of our method.
        goal: the method whose final loss is the one to reach; None: the rival itself.
        axis: one of AXES.

    Returns:
        ``median``, ``min`` and ``max`` over the seeds that all have, and ``each`` seed's ratio; None: there is no such
        seed. A seed where our method never reaches the loss is None in ``each`` and counts as 0 in the rest. A rival
        that never reaches it counts with all that it spent: the ratio is then a lower bound. Without a goal the rival
        counts with all that it spent, too.
    """
    our_runs, rival_runs, goals = by_seed(results, ours), by_seed(results, rival), by_seed(results, goal or rival)
    each: list[float | None] = []
    for seed in sorted(our_runs.keys() & rival_runs.keys() & goals.keys()):
        wanted = goals[seed]["loss_end"]
        our_curve, rival_curve = losses_on(our_runs[seed], axis), losses_on(rival_runs[seed], axis)
        if our_curve is None or rival_curve is None:
            continue
        needed, all_of_it = first_at(our_curve, LOSS, wanted), rival_curve[-1][0]
        rivals_needed = None if goal is None else first_at(rival_curve, LOSS, wanted)
        each.append(None if needed is None else round((rivals_needed or all_of_it) / needed, 3))
    values = [value or 0.0 for value in each]
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values), "each": each}


def losses_on(run: Result, axis: str) -> Curve | None:
    """Return a run's losses against what it had spent on one of AXES; None: the run did not measure it."""
    spent = spent_of(run, axis)
    return None if spent is None else [[x, p[LOSS]] for x, p in zip(spent, run["curve"], strict=True)]


def chosen_of_ours(tuning: Results, names: list[str], rival: str = "mezo") -> str | None:
    """Return that of our methods which reached a rival's final loss for the fewest forward passes; None: none did.

    All of it on the validation rows, each method at its best learning rate; the test rows have no part in the choice.
    Where the rival was not tuned, that of our methods with the lowest loss.
    """
    best = {name: min(runs, key=_loss_end) for name in names if (runs := _tuned(tuning, name))}
    ours = {name: run for name, run in best.items() if name.startswith("spzo")}
    if rival not in best:
        return min(ours, key=lambda name: _loss_end(ours[name])) if ours else None
    goal = _loss_end(best[rival])
    needed = {name: first_at(run["curve"], LOSS, goal) for name, run in ours.items()}
    reached = {name: forwards for name, forwards in needed.items() if forwards is not None}
    return min(reached, key=lambda name: reached[name]) if reached else None


def soonest_rate(tuning: Results, name: str, rival: str = "mezo") -> float | None:
    """Return the learning rate with which a method reached a rival's best final loss for the fewest forward passes.

    All of it on the validation rows. Of rates that reached it after equally many, that with the lowest loss at the end.

    Args:
        tuning: runs of tuning.
        name: the method.
        rival: the rival.

    Returns:
        None: one of the two was not tuned, or the method never reached the loss.
    """
    rivals, runs = _tuned(tuning, rival), _tuned(tuning, name)
    goal = min(map(_loss_end, rivals), default=None)
    if goal is None:
        return None
    needed = [(first_at(run["curve"], LOSS, goal), _loss_end(run), run) for run in runs]
    reached = [(forwards, loss, run) for forwards, loss, run in needed if forwards is not None]
    return float(min(reached, key=lambda one: one[:2])[2]["step"]["learning_rate"]) if reached else None


def _tuned(tuning: Results, name: str) -> Results:
    return [run for run in of_method(tuning, name) if run["rows"] == "validation"]


def _loss_end(run: Result) -> float:
    return float(run["loss_end"])


def core_hours(results: Results) -> float:
    """Return the hours that runs took together, one core each."""
    return sum(float(run["wall_s"]) for run in results) / 3600


def not_run(results: Results, names: list[str], seeds: int) -> list[str]:
    """Return as text which methods have fewer test runs than there are seeds."""
    counts = {name: len(by_seed(results, name)) for name in names}
    return [f"{name}: {count} of {seeds} seeds" for name, count in counts.items() if count < seeds and name != "probe"]
