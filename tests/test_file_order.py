"""Files of tests take turns, and none gets lost."""

from __future__ import annotations

from file_order import taking_turns
from hypothesis import given
from hypothesis import strategies as st


def test_the_shorter_list_is_spread_over_the_longer_one() -> None:
    assert taking_turns(["A", "B"], ["1", "2", "3", "4"]) == ["1", "A", "2", "3", "B", "4"]


@given(st.integers(0, 30), st.integers(0, 30))
def test_all_are_there_and_each_list_keeps_its_order(first: int, second: int) -> None:
    ours, theirs = [f"a{index}" for index in range(first)], [f"b{index}" for index in range(second)]
    both = taking_turns(ours, theirs)
    assert [name for name in both if name in ours] == ours
    assert [name for name in both if name in theirs] == theirs
    assert len(both) == first + second
