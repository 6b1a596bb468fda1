"""What convergence.py found: a table, a picture, and by how much forward passes our methods save."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curves import LOSS, first_at
from benchmarks.harness.plots import new_panels, save
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import matches, read_results
from benchmarks.harness.tables import markdown_table, mean_and_deviation

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.results import Results

HEAD = (
    "method",
    "learning rate",
    "seeds",
    "held-out loss",
    "accuracy",
    "forwards",
    "up, B",
    "down, B",
    "s",
    "peak MB",
)
RIVALS = ("mezo", "decomfl")


def test_runs(path: Path, model: str, mode: str, names: list[str]) -> Results:
    """Return the runs of some methods on the test rows."""
    wanted = {"model": model, "mode": mode, "rows": "test"}
    return [run for run in read_results(path) if matches(run, wanted) and run["name"] in names]


def table(results: Results, names: list[str]) -> str:
    """Return a Markdown table with a row per method: losses and accuracies are mean ± standard deviation over seeds."""
    rows = []
    for name in names:
        runs = _of(results, name)
        if not runs:
            continue
        first = runs[0]
        rows.append(
            (
                name,
                first["step"]["learning_rate"],
                len(runs),
                mean_and_deviation(runs, "loss_end"),
                mean_and_deviation(runs, "accuracy_end"),
                f"{first['forwards']:.0f}",
                first["bytes_up_per_device_round"],
                first["bytes_down_per_device_round"],
                f"{statistics.fmean(run['wall_s'] for run in runs):.0f}",
                f"{max(run['peak_rss_mb'] for run in runs):.0f}",
            )
        )
    return markdown_table(HEAD, rows)


def draw(results: Results, names: list[str], title: str, path: Path) -> None:
    """Draw held-out loss against forward equivalents: the mean over seeds, and each seed faintly."""
    figure, (axes,) = new_panels(1, 1, (8, 5))
    for index, name in enumerate(names):
        runs = _of(results, name)
        if not runs:
            continue
        colour = f"C{index % 10}"
        style = "-" if index < 10 else "--"
        start = statistics.fmean(run["loss_start"] for run in runs)
        for run in runs:
            axes.plot(
                [0, *(p[0] for p in run["curve"])],
                [run["loss_start"], *(p[LOSS] for p in run["curve"])],
                color=colour,
                alpha=0.15,
            )
        curve = np.mean([[p[: LOSS + 1] for p in run["curve"]] for run in runs], axis=0)
        axes.plot([0, *curve[:, 0]], [start, *curve[:, LOSS]], style, color=colour, label=f"{name} ({len(runs)})")
    axes.set_xlabel("forward equivalents, all devices together")
    axes.set_ylabel("held-out loss")
    axes.set_title(title)
    axes.legend(fontsize=8)
    save(figure, path, 120)


def summarize(path: Path, model: str, mode: str, names: list[str]) -> None:
    """Print the table, and one line of JSON with the savings."""
    results = test_runs(path, model, mode, names)
    print(table(results, names))
    line: dict[str, Any] = {"model": model, "mode": mode}
    for rival in RIVALS:
        line[f"forwards_{rival}_over_spzo"] = saving(results, rival, "spzo")
    ours = [name for name in names if name.startswith("spzo")]
    line["best_of_ours"] = min(
        ours, key=lambda name: statistics.fmean([run["loss_end"] for run in _of(results, name)] or [9.0]), default=None
    )
    if line["best_of_ours"]:
        line["forwards_mezo_over_best_of_ours"] = saving(results, "mezo", line["best_of_ours"])
    print(json.dumps({**line, **provenance()}))


def saving(results: Results, rival: str, ours: str) -> dict[str, Any] | None:
    """Return the rival's forward passes over those that our method needs for the rival's final loss, seed by seed.

    Returns:
        ``median``, ``min`` and ``max`` over the seeds that both have, and ``each`` seed's ratio; None: there is no
        such seed. A seed where our method never reaches the loss is None in ``each`` and counts as 0 in the rest.
    """
    our_runs = {run["job"]["seed"]: run for run in reversed(_of(results, ours))}
    rival_runs = {run["job"]["seed"]: run for run in reversed(_of(results, rival))}
    each: list[float | None] = []
    for seed in sorted(our_runs.keys() & rival_runs.keys()):
        needed = first_at(our_runs[seed]["curve"], LOSS, rival_runs[seed]["loss_end"])
        each.append(None if needed is None else round(rival_runs[seed]["forwards"] / needed, 3))
    values = [value or 0.0 for value in each]
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values), "each": each}


def _of(results: Results, name: str) -> Results:
    """Return the runs of one method."""
    return [run for run in results if run["name"] == name]
