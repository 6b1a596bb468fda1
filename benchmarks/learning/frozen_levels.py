"""What a top level behind a kept front costs, and how soon its device has most of what full depth gains."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curves import ACCURACY, first_at
from benchmarks.harness.figures import spread
from benchmarks.harness.measure import alternating, memory_mb
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import add_result, read_results
from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.bundle.manifest_file import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.curves import Curve
    from benchmarks.harness.results import Result, Results
    from benchmarks.learning.droppeft_variants import VariantPlan

SHARE_OF_GAIN = 0.95
"""Time is counted to this share of what full depth's accuracy gains, in the mean over the same seeds."""
_REPEATS = 7


def frozen_costs(plan: VariantPlan, bundle: Path, results: Path) -> Result:
    """Return what gradients cost, from the results file or by measuring all in turn.

    Returns:
        ``frozen_s``: for each top level, CPU seconds of loss and gradients with the layers below looked up, for a full
        batch of rows of several lengths. ``full_s``: for each, those of full depth in the same run.
        ``frozen_memory_mb``, ``full_memory_mb``: the memory of a process that does nothing else, its first run of the
        front included; see harness.measure.memory_mb.
    """
    for result in read_results(results):
        if "frozen_s" in result:
            return result
    manifest = read_manifest(bundle)[0]
    layers = manifest.model.layers
    levels = [level for level in manifest.levels if kind_of(level) == "top" and trained_layers(level) < layers]
    settings = {"bundle": str(bundle.resolve()), "threads": 1, "rows": plan.stld["batch_size"]}
    settings |= {"tokens": plan.setup.max_tokens, "level": layers, "half": layers}
    found: dict[str, dict[str, Any]] = {"frozen_s": {}, "full_s": {}, "frozen_memory_mb": {}}
    for level in levels:
        own = settings | {"level": level, "split": layers - trained_layers(level)}
        kind = "frozen_training"
        seconds = alternating([(kind, "warm"), (kind, "full")], own, _REPEATS, "cpu_s")
        found["frozen_s"][str(level)] = spread(seconds[kind, "warm"])
        found["full_s"][str(level)] = spread(seconds[kind, "full"])
        found["frozen_memory_mb"][str(level)] = spread(memory_mb("frozen_gradients", own))
    measured = {**found, "full_memory_mb": spread(memory_mb("gradients", settings)), **provenance()}
    add_result(results, measured)
    return measured


def rounds_to(ours: Results, full: Results) -> float | None:
    """Return the rounds until the mean accuracy of runs has 95% of full depth's gain; None: never.

    Both are means over the seeds that both have run with.
    """
    seeds = {run["seed"] for run in ours} & {run["seed"] for run in full}
    if not seeds:
        return None
    ends = [(run["accuracy_start"], run["accuracy_end"]) for run in full if run["seed"] in seeds]
    start, end = (statistics.fmean(values) for values in zip(*ends, strict=True))
    mean: Curve = np.mean([run["curve"] for run in ours if run["seed"] in seeds], axis=0).tolist()
    return first_at(mean, ACCURACY, start + SHARE_OF_GAIN * (end - start), is_rising=True)


def ours_against_full(kept: Results, costs: Result, rounds: int) -> dict[str, Any]:
    """Return the figures of the project's aims: the quickest top level behind a kept front, against full depth.

    Of full depth's rates, the one with the best accuracy counts.

    Args:
        kept: all kept runs, of any number of rounds.
        costs: of frozen_costs.
        rounds: of full depth's jobs.

    Returns:
        ``ours``: its level, rounds and learning rate; ``time_full_over_ours``; ``accuracy_less``: full depth's accuracy
        at the end less ours, by seed; ``memory_ratio``. None for all where no level gets there. A row's own pass
        through the front is not in the time.
    """
    full = best_rate([run for run in kept if run["level"] == full_depth(kept) and run["rounds"] == rounds])
    at = rounds_to(full, full)
    best: dict[str, Any] = dict.fromkeys(("ours", "time_full_over_ours", "accuracy_less", "memory_ratio"))
    groups: dict[tuple[str, int, float], Results] = {}
    for run in kept:
        if str(run["level"]) in costs["frozen_s"]:
            groups.setdefault((str(run["level"]), run["rounds"], run["stld"]["learning_rate"]), []).append(run)
    for (level, own_rounds, rate), runs in groups.items():
        reached = rounds_to(runs, full)
        if reached is None or at is None:
            continue
        times = at * costs["full_s"][level]["median"] / (reached * costs["frozen_s"][level]["median"])
        if best["time_full_over_ours"] is None or times > best["time_full_over_ours"]:
            end = {run["seed"]: run["accuracy_end"] for run in full}
            lost = {run["seed"]: end[run["seed"]] - run["accuracy_end"] for run in runs if run["seed"] in end}
            memory = costs["frozen_memory_mb"][level]["median"] / costs["full_memory_mb"]["median"]
            best = {
                "ours": {"level": level, "rounds": own_rounds, "learning_rate": rate, "rounds_to_95": reached},
                "time_full_over_ours": round(times, 3),
                "accuracy_less": {str(seed): round(value, 4) for seed, value in sorted(lost.items())},
                "memory_ratio": round(memory, 3),
            }
    return best


def best_rate(runs: Results) -> Results:
    """Return the runs of the rate with the best mean accuracy, among those with the most seeds."""
    rates: dict[float, Results] = {}
    for run in runs:
        rates.setdefault(run["stld"]["learning_rate"], []).append(run)
    most = max(map(len, rates.values()), default=0)
    found = [own for own in rates.values() if len(own) == most]
    return max(found, key=lambda own: statistics.fmean(run["accuracy_end"] for run in own), default=[])


def full_depth(kept: Results) -> int | None:
    """Return the level of full depth: the largest dropout level that has runs; None: none has."""
    return max((int(run["level"]) for run in kept if kind_of(run["level"]) == "drop"), default=None)
