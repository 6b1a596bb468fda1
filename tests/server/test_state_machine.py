"""The round's state machine: in any order of events, no report counts twice and every round ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rounds import state_machine
from server.rounds.state_machine import OfferState, Round

DEVICES = ["a", "b", "c", "d"]


def fresh(min_reports: int = 2, enough: int = 4, attempt: int = 1) -> Round:
    return state_machine.open_round(3, attempt, DEVICES, 100.0, min_reports, enough)


events = st.lists(
    st.tuples(
        st.sampled_from(["accept", "report", "refuse", "lose", "offer_again"]), st.sampled_from([*DEVICES, "stranger"])
    ),
    max_size=30,
)


@given(history=events, min_reports=st.integers(1, 4), now=st.sampled_from([50.0, 150.0]))
def test_any_history_keeps_the_rules(history: list[tuple[str, str]], min_reports: int, now: float) -> None:
    state, taken = fresh(min_reports), set[str]()
    for kind, device in history:
        if kind == "report":
            outcome = state_machine.judge(state, device, 3, 1, now)
            if outcome == "taken":
                assert device not in taken
                taken.add(device)
                state = state_machine.report(state, device)
            elif now <= 100:
                assert outcome == ("duplicate" if device in taken else "unknown")
        else:
            state = getattr(state_machine, kind)(state, device)
        assert set(state.offers) == set(DEVICES)
        assert set(state.reported) == taken
    decision = state_machine.decide(state, now)
    if decision == "aggregate":
        assert len(taken) >= min_reports
    if decision == "abandon":
        assert len(taken) < min_reports
    if now > 100:
        assert decision != "wait"


def test_all_reports_end_a_round_at_once() -> None:
    state = fresh()
    for device in DEVICES:
        assert state_machine.decide(state, 0.0) == "wait"
        state = state_machine.report(state_machine.accept(state, device), device)
    assert state_machine.decide(state, 0.0) == "aggregate"


def test_a_lost_device_costs_its_report_not_the_round() -> None:
    state = fresh()
    for device in DEVICES[1:]:
        state = state_machine.report(state, device)
    assert state_machine.decide(state, 0.0) == "wait"
    assert state_machine.decide(state_machine.lose(state, "a"), 0.0) == "aggregate"


def test_enough_reports_do_not_wait_for_the_reserve() -> None:
    state = fresh(min_reports=1, enough=2)
    state = state_machine.report(state_machine.report(state, "a"), "c")
    assert state_machine.decide(state, 0.0) == "aggregate"


def test_too_few_reports_abandon_the_attempt() -> None:
    state = state_machine.report(fresh(min_reports=2), "a")
    assert state_machine.decide(state, 100.5) == "abandon"
    for device in DEVICES[1:]:
        state = state_machine.refuse(state, device)
    assert state_machine.decide(state, 0.0) == "abandon"


@pytest.mark.parametrize(
    ("index", "attempt", "device", "now", "outcome"),
    [
        (3, 1, "a", 50.0, "taken"),
        (3, 1, "a", 100.5, "late"),
        (3, 0, "a", 50.0, "late"),
        (2, 9, "a", 50.0, "late"),
        (3, 2, "a", 50.0, "unknown"),
        (4, 0, "a", 50.0, "unknown"),
        (3, 1, "stranger", 50.0, "unknown"),
    ],
)
def test_reports_are_judged(index: int, attempt: int, device: str, now: float, outcome: str) -> None:
    assert state_machine.judge(fresh(), device, index, attempt, now) == outcome


def test_a_device_that_was_lost_may_come_back_and_report() -> None:
    state = state_machine.lose(fresh(), "a")
    assert state_machine.offer_again(state, "a").offers["a"] is OfferState.OFFERED
    assert state_machine.judge(state, "a", 3, 1, 0.0) == "taken"
    assert state_machine.report(state, "a").reported == ["a"]
