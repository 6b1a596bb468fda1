"""The comparison of schedules: its arithmetic by hand, and the advice's figures against the stored runs."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from repository import ROOT

from benchmarks.harness.results import Results, read_results
from benchmarks.learning import schedules
from benchmarks.learning.frozen_levels import best_rate, full_depth, kept_costs, ours_against_full
from benchmarks.learning.top_levels import BASE_ROUNDS, RATE, less
from edge_runtime.bundle.levels import trained_layers
from server.advice.findings import (
    FORWARD_FROM_RUNS,
    FROZEN_RUNS,
    KEPT_FRONT_RUNS,
    LOST_BY_TOP_LEVEL,
    ScheduleRun,
)

RESULTS = ROOT / "benchmarks" / "results"
ALL = [*FROZEN_RUNS.values(), *(run for runs in FORWARD_FROM_RUNS.values() for run in runs)]


def run(name: str, seed: int, accuracy: float, backprop: int, forward: int) -> dict[str, Any]:
    passes = {"backprop": backprop, "forward-only": forward}
    ends = {"accuracy_end": accuracy, "loss_end": 0.5}
    return {**schedules.key_of(name, seed), "row_passes": passes, **ends}


def test_a_schedule_is_compared_with_its_base_by_seed() -> None:
    base = [run("hybrid", seed, 0.7, 100, 300) for seed in (1, 2)]
    ours = [run("backprop-half", 1, 0.72, 150, 50), run("backprop-half", 2, 0.74, 150, 50)]
    unlike = {**run("hybrid", 3, 0.9, 1, 1), "rounds": 99}
    kept = schedules.kept([*base, *ours, unlike], [])
    assert {name: len(runs) for name, runs in kept.items()} == {"hybrid": 2, "backprop-half": 2}
    found = schedules.summary(kept)["backprop-half"]
    assert found["accuracy_end_less_base"] == [pytest.approx(0.03), pytest.approx(0.01)]
    assert found["row_passes_over_base"] == 0.5
    assert schedules.summary(kept)["hybrid"]["accuracy_end_less_base"] is None
    text = schedules.table(kept)
    assert "`hybrid`: +0.030 ± 0.010" in text
    assert "150, 50" in text


def test_fleets_of_droppeft_have_the_passes_that_their_settings_give() -> None:
    kept = {"rounds": 15, "level": 3, "stld": {"steps": 4, "batch_size": 8}}
    forward, backprop = 15 * 6 * 4 * 16 * 2, 15 * 2 * 4 * 8 * 1.5
    for fleet, passes in (("forward", (0, forward)), ("few-backprop", (backprop, 0)), ("hybrid", (backprop, forward))):
        assert tuple(schedules.row_passes({**kept, "fleet": fleet}).values()) == passes


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_what_is_said_of_schedules_is_what_the_stored_runs_say(found: ScheduleRun) -> None:
    entry = schedules.ENTRIES[found.name]
    runs = schedules.kept(_kept("schedules"), _kept("droppeft"))
    summary = schedules.summary(runs)
    figures = summary[found.name]
    assert figures["loss"] / summary[found.base]["loss"] == pytest.approx(found.loss_ratio, abs=5e-4)
    assert figures["seeds"] == 3
    assert entry.base == found.base
    assert figures["accuracy_end_less_base"] == pytest.approx(
        [found.accuracy_more, found.accuracy_more_error], abs=1e-4
    )
    assert figures["row_passes_over_base"] == pytest.approx(found.row_passes_over_base, abs=0.005)
    if entry.fleet == "hybrid":
        assert round(found.share * entry.rounds) == entry.forward_from
    else:
        assert entry.front == "frozen"
        assert found.share == 1.0


def test_what_is_said_of_a_kept_front_is_what_the_stored_runs_say() -> None:
    found = KEPT_FRONT_RUNS["classify-head"]
    stored = _kept("top_levels")
    runs = [one for one in stored if one.get("rows") == "test"]
    costs = kept_costs(stored)
    assert costs
    ours = ours_against_full(runs, costs, BASE_ROUNDS)
    level, layers = ours["ours"]["level"], full_depth(runs)
    assert layers is not None
    assert trained_layers(level) / layers == found.trained_share
    assert (ours["ours"]["rounds"], ours["ours"]["learning_rate"]) == (found.rounds, found.learning_rate)
    assert ours["time_full_over_ours"] == pytest.approx(found.time_full_over_ours, abs=0.05)
    assert ours["memory_ratio"] == pytest.approx(found.memory_ratio, abs=0.005)
    same = [one for one in runs if one["level"] == level and one["rounds"] == found.rounds]
    same = [one for one in same if one["stld"]["learning_rate"] == found.learning_rate]
    full = best_rate([one for one in runs if one["level"] == layers and one["rounds"] == BASE_ROUNDS])
    less = schedules.difference(full, same, "accuracy_end")
    assert less == pytest.approx((found.accuracy_less, found.accuracy_less_error), abs=1e-4)
    ends = [statistics.fmean(one["loss_end"] for one in some) for some in (same, full)]
    assert ends[0] / ends[1] == pytest.approx(found.loss_ratio, abs=5e-4)
    stld = same[0]["stld"]
    assert (stld["steps"], stld["batch_size"]) == (found.steps, found.batch_size)


def test_what_is_said_of_the_last_layers_is_what_the_stored_runs_say() -> None:
    runs = [one for one in _kept("top_levels") if one.get("rows") == "test" and one["rounds"] == BASE_ROUNDS]
    runs = [one for one in runs if one["stld"]["learning_rate"] == RATE]
    layers = full_depth(runs)
    assert layers is not None
    for share, lost in LOST_BY_TOP_LEVEL["classify-head"].items():
        assert statistics.fmean(less(runs, f"top:{round(share * layers)}")) == pytest.approx(lost, abs=1e-4)


def _kept(name: str) -> Results:
    return read_results(RESULTS / f"{name}.jsonl")
