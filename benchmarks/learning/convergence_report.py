"""What convergence.py found: a table, a picture, and by how much forward passes our methods save."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curves import LOSS
from benchmarks.harness.plots import new_panels, save
from benchmarks.harness.provenance import provenance
from benchmarks.harness.tables import markdown_table, mean_and_deviation
from benchmarks.harness.tasks import REVIEWS
from benchmarks.learning.convergence_runs import (
    AXES,
    BYTES,
    FORWARDS,
    SECONDS,
    by_seed,
    chosen_of_ours,
    core_hours,
    mean_loss,
    not_run,
    runs_of,
    saving,
    spent_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.harness.results import Results

HEAD = (
    "method",
    "learning rate",
    "seeds",
    "held-out loss",
    "accuracy",
    "mean loss on the way",
    "forwards",
    "up, B",
    "down, B",
    "s",
    "peak MB",
)
RIVALS = ("mezo", "decomfl")
SHORT = {FORWARDS: "compute", SECONDS: "seconds", BYTES: "bytes"}
"""What a saving is called in the line of JSON."""


def table(results: Results, names: list[str]) -> str:
    """Return a Markdown table with a row per method: losses and accuracies are mean ± standard deviation over seeds."""
    rows = []
    for name in names:
        runs = list(by_seed(results, name).values())
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
                f"{statistics.fmean(map(mean_loss, runs)):.3f}",
                f"{statistics.fmean(run['forwards'] for run in runs):.0f}",
                first["bytes_up_per_device_round"],
                first["bytes_down_per_device_round"],
                f"{statistics.fmean(run['wall_s'] for run in runs):.0f}",
                f"{max(run['peak_rss_mb'] for run in runs):.0f}",
            )
        )
    return markdown_table(HEAD, rows)


def draw(results: Results, names: list[str], title: str, path: Path) -> None:
    """Draw held-out loss against forwards, seconds and bytes of all devices: the mean over seeds, each seed faintly.

    Runs of earlier versions have forwards alone.
    """
    has_all = any("seconds" in run for run in results)
    figure, panels = new_panels(1, 3 if has_all else 1, (18, 5) if has_all else (8, 5), share_y=True)
    for axes, label in zip(panels, AXES, strict=False):
        for index, name in enumerate(names):
            runs = [run for run in by_seed(results, name).values() if spent_of(run, label) is not None]
            if runs:
                _draw_method(axes, runs, label, name, index)
        axes.set_xlabel(f"{label}, all devices together")
    panels[0].set_ylabel("held-out loss")
    panels[0].set_title(title)
    panels[0].legend(fontsize=8)
    save(figure, path, 120)


def _draw_method(axes: Axes, runs: Results, label: str, name: str, index: int) -> None:
    colour, style = f"C{index % 10}", "-" if index < 10 else "--"
    curves = []
    for run in runs:
        curve = [
            [0.0, run["loss_start"]],
            *([x, p[LOSS]] for x, p in zip(spent_of(run, label) or [], run["curve"], strict=True)),
        ]
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.15)
        curves.append(curve)
    # Seeds that were run before a method was evaluated more often have fewer points.
    mean = np.mean([curve for curve in curves if len(curve) == len(curves[-1])], axis=0)
    marker = "o" if len(mean) == 2 else None
    axes.plot(mean[:, 0], mean[:, 1], style, color=colour, marker=marker, label=f"{name} ({len(runs)})")


def summarize(path: Path, model: str, mode: str, task: str, names: list[str], seeds: int, tuned: str) -> str:
    """Return what was not run, and one line of JSON with the savings; ``tuned`` is the model that rates were tuned on.

    Our method in it is the one that needed the fewest forward passes to MeZO's final loss on the validation rows of the
    reviews. A saving in seconds is of durations that the devices measured, beside whatever else the machine did.
    Where methods have rows ``…-soon``, with the learning rate that reached MeZO's loss first, savings follow for them.
    """
    everything = runs_of(path, model, mode, task, names)
    results = [run for run in everything if run["rows"] == "test"]
    tuning = runs_of(path, tuned, mode, REVIEWS, names)
    ours = chosen_of_ours(tuning, names)
    line: dict[str, Any] = {"model": model, "mode": mode, "task": task, "ours": ours}
    for rival in RIVALS:
        line[f"forwards_{rival}_over_spzo"] = saving(results, rival, "spzo")
        for axis in AXES:
            found = saving(results, rival, ours, "mezo", axis) if ours else None
            line[f"{SHORT[axis]}_{rival}_over_ours"] = found and found["min"]
    line.update(_soonest(results, ours))
    line["core_hours"] = round(core_hours(everything), 2)
    missing = [f"not run: {text}" for text in not_run(results, names, seeds)]
    return "\n".join([*missing, json.dumps({**line, **provenance()})])


def _soonest(results: Results, ours: str | None) -> dict[str, Any]:
    """Return what rivals spend to MeZO's final loss over what our method spends, each at its rate that is soonest."""
    soonest, line = f"{ours}-soon", {}
    for rival in RIVALS:
        tuned = rival if rival == "mezo" else f"{rival}-soon"
        if found := saving(results, tuned, soonest, "mezo"):
            line[f"compute_{rival}_over_ours_soonest"] = found["min"]
    return line
