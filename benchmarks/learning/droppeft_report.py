"""What droppeft.py found: tables, a picture, and the figures that the aims are about."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.comparison import first_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Results = list[dict[str, Any]]
Curve = list[list[float]]

LOSS, ACCURACY = 1, 2
_SHARE_OF_GAIN = 0.8
"""The target is this share of the way from the start to where full depth ends on average."""
_FORWARD_STEPS = 4
PANELS = (
    ("depth", "movie", ("full", "three-quarters", "half", "third", "half-twice-the-rounds", "full-half-the-rounds")),
    (
        "draw, half depth",
        "movie",
        ("full", "half", "half-incremental", "half-decay", "half-normal", "half-bernoulli", "half-rescaled"),
    ),
    ("personal layers", "movie", ("full", "half", "full-personal", "half-personal")),
    ("kinds of devices", "movie", ("hybrid-by-examples", "hybrid-by-noise", "few-backprop", "forward")),
    ("Dirichlet 0.1", "dirichlet-0.1", ("full", "half", "full-personal", "half-personal")),
    ("Dirichlet 1", "dirichlet-1", ("full", "half", "half-personal")),
    ("Dirichlet 10", "dirichlet-10", ("full", "half", "half-personal")),
)
"""Of the picture: title, division, entries."""


def round_s(result: dict[str, Any], costs: dict[str, Any]) -> float:
    """Return the seconds that a round takes on the slowest kind of device in it, training alone."""
    backprop = result["stld"]["steps"] * costs["step_s"][str(result["level"])]["median"]
    forward = _FORWARD_STEPS * costs["forward_step_s"]["median"]
    by_fleet = {"forward": forward, "hybrid": max(forward, backprop)}
    return float(by_fleet.get(result["fleet"], backprop))


def timed(result: dict[str, Any], costs: dict[str, Any]) -> Curve:
    """Return a run's curve in seconds: (seconds, loss, accuracy), the start too."""
    start = [0.0, result["loss_start"], result["accuracy_start"]]
    return [start, *([point[0] * round_s(result, costs), *point[1:]] for point in result["curve"])]


def mean_curve(runs: Results, costs: dict[str, Any]) -> Curve:
    """Return the mean over seeds of curves with the same rounds."""
    curve: Curve = np.mean([timed(run, costs) for run in runs], axis=0).tolist()
    return curve


def target(full: Results, column: int) -> float:
    """Return the loss or accuracy that entries are timed to: most of what full depth gains on average."""
    name = {LOSS: "loss", ACCURACY: "accuracy"}[column]
    start, end = (statistics.fmean(run[f"{name}_{when}"] for run in full) for when in ("start", "end"))
    return start + _SHARE_OF_GAIN * (end - start)


def time_to(runs: Results, full: Results, costs: dict[str, Any], column: int) -> float | None:
    """Return the seconds after which the mean curve reaches the target; None: never."""
    return first_at(mean_curve(runs, costs), column, target(full, column), is_rising=column == ACCURACY)


def difference(runs: Results, others: Results, key: str) -> tuple[float, float | None] | None:
    """Return the mean over seeds of a figure less another entry's, and its standard error; None: no seed of both."""
    theirs = {run["seed"]: run[key] for run in others}
    found = [run[key] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    if not found:
        return None
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return statistics.fmean(found), error


def grouped(results: Results) -> dict[str, dict[str, Results]]:
    """Return the runs on the test rows by division and entry; of runs with the same seed the newest one."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for result in results:
        if result.get("rows") == "test":
            entry = found.setdefault(result["division"], {}).setdefault(result["name"], {})
            entry[result["seed"]] = result
    return {
        division: {name: [runs[seed] for seed in sorted(runs)] for name, runs in entries.items()}
        for division, entries in found.items()
    }


def costs_of(results: Results) -> dict[str, Any]:
    """Return what steps cost.

    Raises:
        SystemExit: it was not measured yet.
    """
    for result in results:
        if "step_s" in result:
            return result
    raise SystemExit("there are no results yet: run droppeft.py without --summary or --report")


def summary(results: Results) -> dict[str, Any]:
    """Return the figures that the aims are about; None where runs are missing or a target was never reached."""
    costs = costs_of(results)
    levels = sorted(costs["step_s"], key=int)
    full = levels[-1]
    found: dict[str, Any] = {
        "memory_over_full": {k: _ratio(costs["memory_mb"], k, full) for k in levels},
        "step_over_full": {k: _ratio(costs["step_s"], k, full) for k in levels},
        "divisions": {},
    }
    for division, entries in grouped(results).items():
        if "full" not in entries:
            continue
        base = entries["full"]
        found["divisions"][division] = {
            name: {
                "seeds": len(runs),
                "speedup_to_accuracy": _speedup(runs, base, costs, ACCURACY),
                "speedup_to_loss": _speedup(runs, base, costs, LOSS),
                "accuracy_less_full": _rounded(difference(runs, base, "accuracy_end")),
                "own_accuracy_less_full": _rounded(difference(runs, base, "own_accuracy")),
            }
            for name, runs in entries.items()
            if name != "full"
        }
    return found


def tables(results: Results) -> str:
    """Return Markdown: what steps cost, then a table a division."""
    costs = costs_of(results)
    levels = sorted(costs["step_s"], key=int)
    lines = ["| active layers | step, s | over full | memory, MB | over full |", "|---|---|---|---|---|"]
    for level in reversed(levels):
        step, memory = costs["step_s"][level], costs["memory_mb"][level]
        lines.append(
            f"| {level} | {step['median']:.3f} ({step['min']:.3f} … {step['max']:.3f}) | "
            f"{_ratio(costs['step_s'], level, levels[-1])} | {memory['median']:.0f} | "
            f"{_ratio(costs['memory_mb'], level, levels[-1])} |"
        )
    step, memory = costs["forward_step_s"], costs["forward_memory_mb"]
    lines.append(
        f"| forward-only | {step['median']:.3f} ({step['min']:.3f} … {step['max']:.3f}) | "
        f"{step['median'] / costs['step_s'][levels[-1]]['median']:.2f} | {memory['median']:.0f} | "
        f"{memory['median'] / costs['memory_mb'][levels[-1]]['median']:.2f} |"
    )
    for division, entries in grouped(results).items():
        lines += ["", f"{division}:", "", *_division_table(entries, costs)]
    return "\n".join(lines)


def _division_table(entries: dict[str, Results], costs: dict[str, Any]) -> Iterable[str]:
    yield (
        "| entry | rate | seeds | held-out loss | accuracy | less full | own rows, shared | own rows, personal | "
        "s to the accuracy | s to the loss | s in all | up, B | down, B |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    full = entries.get("full", [])
    for name, runs in entries.items():
        less = difference(runs, full, "accuracy_end") if name != "full" else None
        times = [time_to(runs, full, costs, column) if full else None for column in (ACCURACY, LOSS)]
        cells = [
            name,
            str(
                runs[0]["stld"]["learning_rate"] if runs[0]["fleet"] != "forward" else runs[0]["step"]["learning_rate"]
            ),
            str(len(runs)),
            _spread(runs, "loss_end"),
            _spread(runs, "accuracy_end"),
            "" if less is None else f"{less[0]:+.3f}" + ("" if less[1] is None else f" ± {less[1]:.3f}"),
            _spread(runs, "own_accuracy_shared"),
            _spread(runs, "own_accuracy_personal"),
            *("–" if time is None else f"{time:.1f}" for time in times),
            f"{runs[0]['rounds'] * round_s(runs[0], costs):.1f}",
            _both(runs, "bytes_up"),
            _both(runs, "bytes_down"),
        ]
        yield "| " + " | ".join(cells) + " |"


def plot(results: Results, path: Path) -> None:
    """Draw accuracy against training seconds of one device, a subject a panel: the mean over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    costs, divisions = costs_of(results), grouped(results)
    panels = [
        (title, shown)
        for title, division, names in PANELS
        if (shown := {name: runs for name, runs in divisions.get(division, {}).items() if name in names})
    ]
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False, sharey=True)
    for axes, (title, entries) in zip(grid.flat, panels, strict=False):
        for name, runs in entries.items():
            curve = np.array(mean_curve(runs, costs))
            axes.plot(curve[:, 0], curve[:, ACCURACY], label=f"{name} ({len(runs)})")
        axes.set_title(title)
        axes.set_xlabel("training seconds of one device")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_ylabel("held-out accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _speedup(runs: Results, full: Results, costs: dict[str, Any], column: int) -> float | None:
    ours, theirs = (time_to(some, full, costs, column) for some in (runs, full))
    return None if not ours or theirs is None else round(theirs / ours, 2)


def _ratio(figures: dict[str, Any], level: str, full: str) -> float:
    return round(figures[level]["median"] / figures[full]["median"], 2)


def _rounded(found: tuple[float, float | None] | None) -> list[float | None] | None:
    return None if found is None else [None if value is None else round(value, 4) for value in found]


def _spread(runs: Results, key: str) -> str:
    """Return mean ± standard deviation over seeds; nothing where there is nothing."""
    values: Sequence[float] = [run[key] for run in runs if run[key] is not None]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def _both(runs: Results, key: str) -> str:
    """Return the mean bytes of backprop and of forward-only devices."""
    kinds = [[run[key][kind] for run in runs if run[key][kind] is not None] for kind in ("backprop", "forward-only")]
    return ", ".join(f"{statistics.fmean(values):.0f}" for values in kinds if values)
