"""The comparisons' own arithmetic: when a curve reaches a value, what times and differences follow from runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import curves, results
from benchmarks.learning import droppeft_report as report

COSTS: dict[str, Any] = {
    "step_s": {"3": {"median": 0.1}, "6": {"median": 0.2}},
    "memory_mb": {"3": {"median": 60.0}, "6": {"median": 100.0}},
    "forward_step_s": {"median": 0.05},
}


def result(name: str, level: int, seed: int, accuracies: list[float], fleet: str = "backprop") -> dict[str, Any]:
    return {
        "model": "tiny",
        "rows": "test",
        "division": "movie",
        "name": name,
        "level": level,
        "seed": seed,
        "fleet": fleet,
        "rounds": 2 * len(accuracies),
        "stld": {"steps": 5, "learning_rate": 0.002},
        "loss_start": 0.7,
        "loss_end": 1 - accuracies[-1],
        "accuracy_start": 0.6,
        "accuracy_end": accuracies[-1],
        "own_accuracy": accuracies[-1],
        "own_accuracy_shared": accuracies[-1],
        "own_accuracy_personal": None,
        "bytes_up": {"backprop": 1000, "forward-only": None},
        "bytes_down": {"backprop": 1000, "forward-only": None},
        "curve": [[2 * (i + 1), 1 - accuracy, accuracy] for i, accuracy in enumerate(accuracies)],
    }


def test_a_curve_reaches_a_value_between_two_points_or_never() -> None:
    falling = [[0.0, 0.7], [10.0, 0.5], [20.0, 0.6]]
    assert curves.first_at(falling, 1, 0.6) == pytest.approx(5.0)
    assert curves.first_at(falling, 1, 0.8) == 0.0
    assert curves.first_at(falling, 1, 0.4) is None
    rising = [[0.0, 0.5], [10.0, 0.7]]
    assert curves.first_at(rising, 1, 0.65, is_rising=True) == pytest.approx(7.5)
    assert curves.first_at(rising, 1, 0.7, is_rising=True) == 10.0
    assert curves.first_at(rising, 1, 0.71, is_rising=True) is None


def test_a_run_that_is_there_is_not_repeated(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint(json.dumps({'got': json.loads(sys.argv[2])['seed'] + 1}))\n")
    file, key = tmp_path / "results.jsonl", {"seed": 1, "name": "a"}
    made, seconds = results.find_or_run(file, [str(script)], key, {"root": "somewhere"})
    assert made["got"] == 2
    assert seconds is not None
    assert "root" not in made
    script.unlink()
    assert results.find_or_run(file, [str(script)], key, {}) == (made, None)
    assert results.read_results(file) == [json.loads(file.read_text())]


def test_half_the_seconds_for_the_same_curve_is_twice_as_fast() -> None:
    """Target: 0.6 + 0.8 × (0.7 − 0.6); reached after 3 of 4 rounds of 5 steps."""
    full = [result("full", 6, seed, [0.66, 0.7]) for seed in (1, 2)]
    half = [result("half", 3, seed, [0.66, 0.7]) for seed in (1, 2)]
    assert report.time_to(full, full, COSTS, report.ACCURACY) == pytest.approx(3 * 5 * 0.2)
    assert report.time_to(half, full, COSTS, report.ACCURACY) == pytest.approx(3 * 5 * 0.1)
    worse = [result("third", 3, seed, [0.61, 0.62]) for seed in (1, 2)]
    assert report.time_to(worse, full, COSTS, report.ACCURACY) is None
    found = report.summary([{"model": "tiny", **COSTS}, *full, *half, *worse])
    assert found["divisions"]["movie"]["half"]["speedup_to_accuracy"] == 2.0
    assert found["divisions"]["movie"]["third"]["speedup_to_accuracy"] is None
    assert found["memory_over_full"]["3"] == 0.6
    assert report.tables([{"model": "tiny", **COSTS_WITH_RANGE}, *full, *half]).count("\n| half |") == 1


def test_differences_are_paired_by_seed() -> None:
    full = [result("full", 6, seed, [0.7 + seed / 100]) for seed in (1, 2, 3)]
    half = [result("half", 3, seed, [0.69 + seed / 100]) for seed in (2, 3, 4)]
    mean, error = report.difference(half, full, "accuracy_end")
    assert mean == pytest.approx(-0.01)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert report.difference(half[2:], full, "accuracy_end") is None


def test_a_hybrid_round_lasts_as_long_as_its_slowest_kind() -> None:
    hybrid = result("hybrid", 3, 1, [0.7], "hybrid")
    assert report.round_s(hybrid, COSTS) == pytest.approx(0.5)
    assert report.round_s({**hybrid, "fleet": "forward"}, COSTS) == pytest.approx(0.2)


COSTS_WITH_RANGE = {
    name: {level: {**figure, "min": figure["median"], "max": figure["median"]} for level, figure in figures.items()}
    for name, figures in COSTS.items()
    if name != "forward_step_s"
} | {
    "forward_step_s": {"median": 0.05, "min": 0.05, "max": 0.05},
    "forward_memory_mb": {"median": 40.0, "min": 40.0, "max": 40.0},
}
