"""What a top level behind a kept front costs, and how soon its device has most of what full depth gains."""

from __future__ import annotations

import statistics
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.curves import ACCURACY, first_at
from benchmarks.harness.figures import spread
from benchmarks.harness.measure import alternating, memory_after, memory_mb
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import add_result, read_results
from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.bundle.manifest_file import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.curves import Curve
    from benchmarks.harness.results import Result, Results
    from benchmarks.learning.droppeft_variants import VariantPlan
    from edge_runtime.bundle.levels import Level

SHARE_OF_GAIN = 0.95
"""Time is counted to this share of what full depth's accuracy gains, in the mean over the same seeds."""
_REPEATS = 7


def frozen_costs(plan: VariantPlan, bundle: Path, results: Path) -> Result:
    """Return what gradients cost, from the results file or by measuring all in turn.

    Returns:
        ``frozen_s``: for each top level, CPU seconds of loss and gradients with the layers below looked up, for a full
        batch of rows of several lengths. ``full_s``: for each, those of full depth in the same run.
        ``frozen_memory_mb``: for each, the memory of a process that does nothing else, the front's run for each row
        included; ``later_memory_mb``: of a process that finds all rows kept; ``full_memory_mb``: of full depth. See
        harness.measure.memory_mb.
    """
    kept = read_results(results)
    if not any(is_times(result) for result in kept):
        add_result(results, _times(plan, bundle) | provenance())
    if not any(is_memory(result) for result in kept):
        add_result(results, _memory(plan, bundle) | provenance())
    return kept_costs(read_results(results))


def is_times(result: Result) -> bool:
    """Whether a kept result has the times of gradients."""
    return "frozen_s" in result


def is_memory(result: Result) -> bool:
    """Whether a kept result has the memory of gradients."""
    return "later_memory_mb" in result


def kept_costs(kept: Results) -> Result:
    """Return what is known of ``frozen_costs``: the last measurement of each; empty: times or memory are missing."""
    times = next(filter(is_times, reversed(kept)), None)
    memory = next(filter(is_memory, reversed(kept)), None)
    return {} if times is None or memory is None else times | memory


def _settings(plan: VariantPlan, bundle: Path) -> tuple[dict[str, Any], dict[Level, dict[str, Any]]]:
    """Return the settings of workers for full depth, and for each top level of a bundle."""
    manifest = read_manifest(bundle)[0]
    layers = manifest.model.layers
    full = {"bundle": str(bundle.resolve()), "threads": 1, "rows": plan.stld["batch_size"]}
    full |= {"tokens": plan.setup.max_tokens, "level": layers, "half": layers}
    levels = [level for level in manifest.levels if kind_of(level) == "top" and trained_layers(level) < layers]
    return full, {level: full | {"level": level, "split": layers - trained_layers(level)} for level in levels}


def _times(plan: VariantPlan, bundle: Path) -> Result:
    found: dict[str, dict[str, Any]] = {"frozen_s": {}, "full_s": {}}
    for level, own in _settings(plan, bundle)[1].items():
        kind = "frozen_training"
        seconds = alternating([(kind, "warm"), (kind, "full")], own, _REPEATS, "cpu_s")
        found["frozen_s"][str(level)] = spread(seconds[kind, "warm"])
        found["full_s"][str(level)] = spread(seconds[kind, "full"])
    return found


def _memory(plan: VariantPlan, bundle: Path) -> Result:
    full, levels = _settings(plan, bundle)
    found: dict[str, dict[str, Any]] = {"frozen_memory_mb": {}, "later_memory_mb": {}}
    for level, own in levels.items():
        found["frozen_memory_mb"][str(level)] = spread(memory_mb("frozen_gradients", own, "frozen_libraries"))
        with tempfile.TemporaryDirectory() as fronts:
            later = own | {"fronts": fronts}
            memory_after("frozen_gradients", later, processes=1)
            found["later_memory_mb"][str(level)] = spread(memory_mb("frozen_gradients", later, "frozen_libraries"))
    return {**found, "full_memory_mb": spread(memory_mb("gradients", full))}


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
        at the end less ours, by seed; ``memory_ratio``, and ``memory_ratio_later`` once all rows are kept. None for all
        where no level gets there. A row's own pass through the front is not in the time.
    """
    full = best_rate([run for run in kept if run["level"] == full_depth(kept) and run["rounds"] == rounds])
    at = rounds_to(full, full)
    names = ("ours", "time_full_over_ours", "accuracy_less", "memory_ratio", "memory_ratio_later")
    best: dict[str, Any] = dict.fromkeys(names)
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
            memory, later = (
                costs[key][level]["median"] / costs["full_memory_mb"]["median"]
                for key in ("frozen_memory_mb", "later_memory_mb")
            )
            best = {
                "ours": {"level": level, "rounds": own_rounds, "learning_rate": rate, "rounds_to_95": reached},
                "time_full_over_ours": round(times, 3),
                "accuracy_less": {str(seed): round(value, 4) for seed, value in sorted(lost.items())},
                "memory_ratio": round(memory, 3),
                "memory_ratio_later": round(later, 3),
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
