"""The costs of a device and round: the fit's arithmetic, and that the benchmark counts what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.fit import fit, growth
from benchmarks.workers.counted_rounds import count_rounds

if TYPE_CHECKING:
    from pathlib import Path


def test_a_fit_finds_the_costs_that_made_the_figures() -> None:
    sizes = [(1, 50, 50), (1, 50, 200), (1, 200, 200), (1, 1000, 1000), (1, 200, 4000)]
    exact = fit(sizes, [0.01 * a + 2e-3 * b + 1e-6 * c for a, b, c in sizes])
    assert exact.coefficients == pytest.approx([0.01, 2e-3, 1e-6])
    assert exact.errors == pytest.approx([0, 0, 0], abs=1e-12)
    assert exact.r2 == pytest.approx(1.0)


def test_a_fit_says_how_sure_it_is() -> None:
    found = fit([(1.0,), (1.0,), (1.0,)], [0.9, 1.0, 1.1])
    assert found.coefficients[0] == pytest.approx(1.0, abs=0.05)
    assert 0.03 < found.errors[0] < 0.1
    with pytest.raises(ValueError, match="apart"):
        fit([(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], [1.0, 2.0, 3.0])


def test_growth_is_one_for_a_line_and_two_for_a_square() -> None:
    sizes = [50.0, 200.0, 1000.0]
    assert growth(sizes, [3 * size for size in sizes]) == pytest.approx(1.0)
    assert growth(sizes, [size**2 for size in sizes]) == pytest.approx(2.0)


def test_messages_rows_and_seconds_are_counted(tmp_path: Path) -> None:
    counted = count_rounds(tmp_path, online=12, cohort=5, rounds=3, parameters=1200)
    assert len(counted.rounds_s) == 2
    assert all(seconds > 0 for seconds in counted.rounds_s)
    assert (counted.round_flow.received, counted.round_flow.sent) == (10, 10)  # 5 devices: 2 messages each way
    assert counted.rows[1] == 1.0
    assert counted.rows[0] >= 5
    assert counted.log_bytes > 0
    assert counted.ledger_bytes > 0
