"""Cohorts: drawn at random, and nobody waits longer than the bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.fleet.cohort import choose_cohort, longest_wait


@given(
    devices=st.integers(1, 40),
    cohort=st.integers(1, 20),
    over=st.floats(1.0, 2.0),
    seed=st.integers(0, 2**32),
    away=st.sets(st.integers(0, 39), max_size=20),
)
def test_nobody_who_is_here_waits_longer_than_the_bound(
    devices: int, cohort: int, over: float, seed: int, away: set[int]
) -> None:
    names = [f"d{index:02}" for index in range(devices)]
    last = dict.fromkeys(names, -1)
    sizes = []
    for index in range(60):
        # Some devices come and go; the bound is for those that stay.
        here = [name for number, name in enumerate(names) if number not in away or (index // 7) % 2]
        if not here:
            continue
        waited = {name: index - 1 - last[name] for name in here}
        chosen = choose_cohort(here, cohort, over, seed, index, 0, waited)
        sizes.append(len(chosen))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(here)
        last.update(dict.fromkeys(chosen, index))
        wanted = min(devices, max(cohort, int(cohort * over)))
        for number, name in enumerate(names):
            if number not in away:
                assert index - last[name] <= longest_wait(devices, wanted)
    assert all(size >= min(cohort, 1) for size in sizes)


def test_the_longest_wait_goes_first() -> None:
    names = ["a", "b", "c", "d"]
    waited = {"a": 50, "b": 60, "c": 0, "d": 0}
    assert choose_cohort(names, 1, 1.0, 0, 9, 0, waited) == ["b"]
    assert choose_cohort(names, 2, 1.0, 0, 9, 0, waited) == ["a", "b"]
