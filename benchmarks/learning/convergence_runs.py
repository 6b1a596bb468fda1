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

    from benchmarks.harness.results import Result, Results


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
    """Return the first run of each seed of one method."""
    return {run["job"]["seed"]: run for run in reversed(of_method(results, name))}


def mean_loss(run: Result) -> float:
    """Return the mean held-out loss over what was spent: the area under the curve, divided by its length."""
    points = [(0.0, run["loss_start"]), *((p[0], p[LOSS]) for p in run["curve"])]
    pairs = list(itertools.pairwise(points))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
    return float(area / points[-1][0])


def saving(results: Results, rival: str, ours: str, goal: str | None = None) -> dict[str, Any] | None:
    """Return the forward passes that a rival needs to a loss over those that our method needs, seed by seed.

    Args:
        results: runs on the test rows.
        rival: name of the rival.
        ours: name of our method.
        goal: the method whose final loss is the one to reach; None: the rival itself.

    Returns:
        ``median``, ``min`` and ``max`` over the seeds that all have, and ``each`` seed's ratio; None: there is no such
        seed. A seed where our method never reaches the loss is None in ``each`` and counts as 0 in the rest. A rival
        that never reaches it counts with all that it spent: the ratio is then a lower bound.
    """
    our_runs, rival_runs, goals = by_seed(results, ours), by_seed(results, rival), by_seed(results, goal or rival)
    each: list[float | None] = []
    for seed in sorted(our_runs.keys() & rival_runs.keys() & goals.keys()):
        wanted, theirs = goals[seed]["loss_end"], rival_runs[seed]
        needed = first_at(our_runs[seed]["curve"], LOSS, wanted)
        rivals_needed = theirs["forwards"] if goal is None else first_at(theirs["curve"], LOSS, wanted)
        each.append(None if needed is None else round((rivals_needed or theirs["forwards"]) / needed, 3))
    values = [value or 0.0 for value in each]
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values), "each": each}


def chosen_of_ours(tuning: Results, names: list[str]) -> str | None:
    """Return that of our methods which had the lowest loss on the validation rows; None: none was tuned.

    The test rows have no part in the choice.
    """
    ours = {name for name in names if name.startswith("spzo")}
    losses = [(run["loss_end"], run["name"]) for run in tuning if run["name"] in ours and run["rows"] == "validation"]
    return min(losses)[1] if losses else None


def core_hours(results: Results) -> float:
    """Return the hours that runs took together, one core each."""
    return sum(float(run["wall_s"]) for run in results) / 3600


def not_run(results: Results, names: list[str], seeds: int) -> list[str]:
    """Return as text which methods have fewer test runs than there are seeds."""
    counts = {name: len(by_seed(results, name)) for name in names}
    return [f"{name}: {count} of {seeds} seeds" for name, count in counts.items() if count < seeds and name != "probe"]
