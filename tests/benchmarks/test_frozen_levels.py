"""The comparison of full depth with levels behind a kept front: its arithmetic, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.learning.frozen_levels import kept_costs, ours_against_full, rounds_to

COSTS: dict[str, Any] = {
    "frozen_s": {"top:1": {"median": 0.1}, "top:2": {"median": 0.2}},
    "full_s": {"top:1": {"median": 0.5}, "top:2": {"median": 0.6}},
    "frozen_memory_mb": {"top:1": {"median": 30.0}, "top:2": {"median": 40.0}},
    "later_memory_mb": {"top:1": {"median": 20.0}, "top:2": {"median": 25.0}},
    "full_memory_mb": {"median": 100.0},
}


def run(level: int | str, seed: int, accuracies: list[float], rate: float = 0.003) -> dict[str, Any]:
    """A job that is evaluated after each two rounds."""
    curve = [[2 * index + 2, 0.5, accuracy] for index, accuracy in enumerate(accuracies)]
    return {
        "level": level,
        "seed": seed,
        "rounds": 2 * len(accuracies),
        "stld": {"learning_rate": rate},
        "accuracy_start": 0.6,
        "accuracy_end": accuracies[-1],
        "curve": curve,
    }


FULL = [run(6, seed, [0.7, 0.8]) for seed in (1, 2)]
"""Its target is 0.6 + 0.95 × 0.2 = 0.79; between 2 rounds (0.7) and 4 (0.8), that is after 3.8."""


def test_rounds_are_counted_on_the_mean_of_the_seeds_that_both_have() -> None:
    assert rounds_to(FULL, FULL) == pytest.approx(3.8)
    ours = [run("top:1", 2, [0.69, 0.79, 0.81]), run("top:1", 7, [0.1, 0.1, 0.1])]
    assert rounds_to(ours, FULL) == pytest.approx(4.0)
    assert rounds_to([run("top:1", 7, [0.9])], FULL) is None
    assert rounds_to([run("top:1", 1, [0.7, 0.78])], FULL) is None


def test_the_quickest_job_is_ours() -> None:
    """top:1 takes six rounds of 0.1 against 3.8 of 0.5, top:2 four rounds of 0.2 against 3.8 of 0.6."""
    slow = [run("top:1", seed, [0.65, 0.7, 0.79 + seed / 100 - 0.015]) for seed in (1, 2)]
    quick = [run("top:2", seed, [0.69, 0.79], 0.006) for seed in (1, 2)]
    found = ours_against_full([*FULL, *slow, *quick], COSTS, 4)
    assert found["ours"] == {"level": "top:1", "rounds": 6, "learning_rate": 0.003, "rounds_to_95": pytest.approx(6)}
    assert found["time_full_over_ours"] == pytest.approx(3.8 * 0.5 / (6 * 0.1), abs=1e-3)
    assert found["accuracy_less"] == {"1": pytest.approx(0.015), "2": pytest.approx(0.005)}
    assert (found["memory_ratio"], found["memory_ratio_later"]) == (0.3, 0.2)
    better = [run(6, seed, [0.8, 0.9], 0.006) for seed in (1, 2)]
    assert ours_against_full([*FULL, *better, *slow], COSTS, 4)["ours"] is None
    fewer = [run(6, 1, [0.8, 0.9], 0.012)]
    assert ours_against_full([*FULL, *fewer, *slow], COSTS, 4)["time_full_over_ours"] == found["time_full_over_ours"]
    never = ours_against_full([*FULL, run("top:1", 1, [0.65])], COSTS, 4)
    assert set(never.values()) == {None}
    assert set(ours_against_full(slow, COSTS, 4).values()) == {None}
    unlike = ours_against_full([*FULL, *quick], COSTS, 4)
    assert unlike["time_full_over_ours"] == pytest.approx(3.8 * 0.6 / (4 * 0.2), abs=1e-3)


def test_the_last_measurement_of_times_and_of_memory_count() -> None:
    times, memory = (
        {"frozen_s": {"top:1": 1}, "frozen_memory_mb": "old"},
        {"frozen_memory_mb": "m", "later_memory_mb": "l"},
    )
    assert kept_costs([times]) == {}
    assert kept_costs([memory]) == {}
    assert kept_costs([{"frozen_s": {}}, times, {"level": 6}, memory])["frozen_s"] == {"top:1": 1}
    assert kept_costs([times, memory])["frozen_memory_mb"] == "m"
