"""What droppeft.py found: tables, a picture, and the figures of the project's aims."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curves import ACCURACY, LOSS, first_at
from benchmarks.harness.plots import new_panels, save
from benchmarks.harness.tables import markdown_table, mean_and_deviation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness.curves import Curve
    from benchmarks.harness.figures import Spread, Spreads
    from benchmarks.harness.results import Result, Results

_SHARE_OF_GAIN = 0.8
"""The target is this share of the way from the start to the mean end of full depth."""
_FORWARD_STEPS = 4
"""Steps per round of a forward-only device."""
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
"""The panels of the picture: title, division, variants."""

COST_HEAD = ("active layers", "step, s", "over full", "memory, MB", "over full")
VARIANT_HEAD = (
    "entry",
    "rate",
    "seeds",
    "held-out loss",
    "accuracy",
    "less full",
    "own rows, shared",
    "own rows, personal",
    "s to the accuracy",
    "s to the loss",
    "s in all",
    "up, B",
    "down, B",
)


def round_s(result: Result, costs: Result) -> float:
    """Return the training seconds of a round on the slowest kind of device in it; see droppeft_costs for ``costs``."""
    backprop = result["stld"]["steps"] * costs["step_s"][str(result["level"])]["median"]
    forward = _FORWARD_STEPS * costs["forward_step_s"]["median"]
    by_fleet = {"forward": forward, "hybrid": max(forward, backprop)}
    return float(by_fleet.get(result["fleet"], backprop))


def timed(result: Result, costs: Result) -> Curve:
    """Return a run's curve against training seconds, from the start on."""
    start = [0.0, result["loss_start"], result["accuracy_start"]]
    return [start, *([point[0] * round_s(result, costs), *point[1:]] for point in result["curve"])]


def mean_curve(runs: Results, costs: Result) -> Curve:
    """Return the mean over runs of their curves against training seconds; all have the same rounds."""
    curve: Curve = np.mean([timed(run, costs) for run in runs], axis=0).tolist()
    return curve


def target(full: Results, column: int) -> float:
    """Return the loss or accuracy that variants are timed to: a share of what full depth gains on average."""
    name = {LOSS: "loss", ACCURACY: "accuracy"}[column]
    start, end = (statistics.fmean(run[f"{name}_{when}"] for run in full) for when in ("start", "end"))
    return start + _SHARE_OF_GAIN * (end - start)


def time_to(runs: Results, full: Results, costs: Result, column: int) -> float | None:
    """Return the seconds after which the mean curve reaches the target; None: never."""
    return first_at(mean_curve(runs, costs), column, target(full, column), is_rising=column == ACCURACY)


def difference(runs: Results, others: Results, key: str) -> tuple[float, float | None] | None:
    """Return a figure's mean difference from another variant's, paired by seed, and the standard error.

    None where the two have no seed in common; the standard error is None where they have one.
    """
    theirs = {run["seed"]: run[key] for run in others}
    found = [run[key] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    if not found:
        return None
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return statistics.fmean(found), error


def grouped(results: Results) -> dict[str, dict[str, Results]]:
    """Return the runs on the test rows by division and variant, in the order of seeds; the newest one per seed."""
    found: dict[str, dict[str, dict[int, Result]]] = {}
    for result in results:
        if result.get("rows") == "test":
            by_seed = found.setdefault(result["division"], {}).setdefault(result["name"], {})
            by_seed[result["seed"]] = result
    return {
        division: {name: [runs[seed] for seed in sorted(runs)] for name, runs in variants.items()}
        for division, variants in found.items()
    }


def costs_of(results: Results) -> Result:
    """Return what steps cost: see droppeft_costs.

    Raises:
        SystemExit: the costs have not been measured yet.
    """
    for result in results:
        if "step_s" in result:
            return result
    raise SystemExit("there are no results yet: run this command without --summary and --report first")


def summary(results: Results) -> dict[str, Any]:
    """Return the figures of the project's aims; None where runs are missing or never reach their target."""
    costs = costs_of(results)
    levels = sorted(costs["step_s"], key=int)
    full = levels[-1]
    found: dict[str, Any] = {
        "memory_over_full": {k: _ratio(costs["memory_mb"], k, full) for k in levels},
        "step_over_full": {k: _ratio(costs["step_s"], k, full) for k in levels},
        "divisions": {},
    }
    for division, variants in grouped(results).items():
        if "full" not in variants:
            continue
        base = variants["full"]
        found["divisions"][division] = {
            name: {
                "seeds": len(runs),
                "speedup_to_accuracy": _speedup(runs, base, costs, ACCURACY),
                "speedup_to_loss": _speedup(runs, base, costs, LOSS),
                "accuracy_less_full": _rounded(difference(runs, base, "accuracy_end")),
                "own_accuracy_less_full": _rounded(difference(runs, base, "own_accuracy")),
            }
            for name, runs in variants.items()
            if name != "full"
        }
    return found


def tables(results: Results) -> str:
    """Return Markdown: a table of what steps cost, then one per division."""
    costs = costs_of(results)
    texts = [markdown_table(COST_HEAD, _cost_rows(costs))]
    for division, variants in grouped(results).items():
        texts += [f"{division}:", markdown_table(VARIANT_HEAD, _variant_rows(variants, costs))]
    return "\n\n".join(texts)


def _cost_rows(costs: Result) -> Iterator[tuple[object, ...]]:
    levels = sorted(costs["step_s"], key=int, reverse=True)
    full = levels[0]
    for level in levels:
        yield (
            level,
            _seconds(costs["step_s"][level]),
            _ratio(costs["step_s"], level, full),
            f"{costs['memory_mb'][level]['median']:.0f}",
            _ratio(costs["memory_mb"], level, full),
        )
    step, memory = costs["forward_step_s"], costs["forward_memory_mb"]
    yield (
        "forward-only",
        _seconds(step),
        f"{step['median'] / costs['step_s'][full]['median']:.2f}",
        f"{memory['median']:.0f}",
        f"{memory['median'] / costs['memory_mb'][full]['median']:.2f}",
    )


def _variant_rows(variants: dict[str, Results], costs: Result) -> Iterator[tuple[object, ...]]:
    full = variants.get("full", [])
    for name, runs in variants.items():
        first = runs[0]
        less = difference(runs, full, "accuracy_end") if name != "full" else None
        times = [time_to(runs, full, costs, column) if full else None for column in (ACCURACY, LOSS)]
        yield (
            name,
            first["step" if first["fleet"] == "forward" else "stld"]["learning_rate"],
            len(runs),
            mean_and_deviation(runs, "loss_end"),
            mean_and_deviation(runs, "accuracy_end"),
            "" if less is None else f"{less[0]:+.3f}" + ("" if less[1] is None else f" ± {less[1]:.3f}"),
            mean_and_deviation(runs, "own_accuracy_shared"),
            mean_and_deviation(runs, "own_accuracy_personal"),
            *("–" if time is None else f"{time:.1f}" for time in times),
            f"{first['rounds'] * round_s(first, costs):.1f}",
            _both(runs, "bytes_up"),
            _both(runs, "bytes_down"),
        )


def draw(results: Results, path: Path) -> None:
    """Draw accuracy against the training seconds of one device, a panel per subject: the mean over seeds."""
    costs, divisions = costs_of(results), grouped(results)
    subjects = [
        (title, shown)
        for title, division, names in PANELS
        if (shown := {name: runs for name, runs in divisions.get(division, {}).items() if name in names})
    ]
    columns = min(len(subjects), 4)
    rows = math.ceil(len(subjects) / columns)
    figure, panels = new_panels(rows, columns, (5 * columns, 4 * rows), share_y=True)
    for axes, (title, variants) in zip(panels, subjects, strict=False):
        for name, runs in variants.items():
            curve = np.array(mean_curve(runs, costs))
            axes.plot(curve[:, 0], curve[:, ACCURACY], label=f"{name} ({len(runs)})")
        axes.set_title(title)
        axes.set_xlabel("training seconds of one device")
        axes.legend(fontsize=7)
    for axes in panels[len(subjects) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("held-out accuracy")
    save(figure, path, 100)


def _speedup(runs: Results, full: Results, costs: Result, column: int) -> float | None:
    ours, theirs = (time_to(some, full, costs, column) for some in (runs, full))
    return None if not ours or theirs is None else round(theirs / ours, 2)


def _ratio(figures: Spreads, level: str, full: str) -> float:
    return round(figures[level]["median"] / figures[full]["median"], 2)


def _rounded(found: tuple[float, float | None] | None) -> list[float | None] | None:
    return None if found is None else [None if value is None else round(value, 4) for value in found]


def _seconds(found: Spread) -> str:
    return f"{found['median']:.3f} ({found['min']:.3f} … {found['max']:.3f})"


def _both(runs: Results, key: str) -> str:
    """Return the mean bytes of backprop devices and of forward-only devices, as far as there are some."""
    kinds = [[run[key][kind] for run in runs if run[key][kind] is not None] for kind in ("backprop", "forward-only")]
    return ", ".join(f"{statistics.fmean(values):.0f}" for values in kinds if values)
