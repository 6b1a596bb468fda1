"""The rules of a switch of versions: no sequence of crashes, installations and requests leaves a device without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.update import rules
from edge_runtime.update.rules import MOST_ATTEMPTS, MOST_DEATHS, Limits, Signs, judge
from edge_runtime.update.slots import Installed, other
from edge_runtime.update.state import Outcome, Request, State, StateDamagedError, Trial, read_state, write_state

LIMITS = Limits(healthy_s=300, trial_s=100, soon_s=600)


class Switches(RuleBasedStateMachine):
    """A launcher whose memory is lost at any time, an installer, and an owner; ``disk`` is what they have written."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.slots = {"a": self.new("a")}
        self.disk = State("a")
        self.memory = self.disk
        self.good = {"a"}  # slots whose version was accepted
        self.request: Request | None = None
        self.running = False
        self.in_row = 0  # attempts of a trial that were not given back

    def new(self, slot: str) -> Installed:
        self.made += 1
        return Installed(slot, f"0.{self.made}", f"{self.made:064x}")

    @property
    def is_settled(self) -> bool:
        return self.disk.trial is None and (self.request is None or self.request.id == self.disk.request)

    def write(self, state: State) -> None:
        self.memory = self.disk = state

    # -- others ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.is_settled)
    @rule(whole=st.sampled_from([True, True, False]))
    def install(self, whole: bool) -> None:
        """The other slot is emptied first; a killed installation leaves nothing that can run."""
        slot = other(self.disk.current)
        self.slots.pop(slot, None)
        self.good.discard(slot)
        if whole:
            self.slots[slot] = self.new(slot)

    @rule(kind=st.sampled_from(["update", "rollback"]), stale=st.sampled_from([False, False, True]), name=st.uuids())
    def ask(self, kind: str, stale: bool, name: UUID) -> None:
        slot = other(self.disk.current) if self.disk.trial is None else self.disk.trial.back
        if kind == "rollback" and self.disk.trial is None:
            before = rules.previous_version(self.disk, self.slots)
            if before is None:
                return
            assert before.slot in self.good  # the way back leads to a version that has worked
        sha256 = "0" * 64 if stale or slot not in self.slots else self.slots[slot].sha256
        self.request = Request(name.hex, kind, slot, sha256)

    @precondition(lambda self: self.disk.trial is None)
    @rule()
    def lose_the_other_slot(self) -> None:
        self.slots.pop(other(self.disk.current), None)
        self.good.discard(other(self.disk.current))

    # -- the launcher ---------------------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        """The launcher and what it runs die; the next start reads the disk."""
        self.memory, self.running = self.disk, False

    @precondition(lambda self: not self.running)
    @rule()
    def start(self) -> None:
        before = state = self.memory
        if self.request is not None:
            state = rules.take_request(state, self.request, self.slots, 0)
            if before.trial is None and state.trial is not None:
                assert self.slots[state.current].sha256 == self.request.sha256  # what was asked for, and nothing else
        state = rules.begin_attempt(rules.repaired(state, self.slots, 0), self.slots, 0)
        if state.trial is not None:
            self.in_row = state.trial.attempts if before.trial is None else self.in_row + 1
            assert self.in_row <= MOST_ATTEMPTS
        elif before.trial is not None:
            assert state.current == before.trial.back
        self.write(state)
        self.request, self.running = None, True

    @precondition(lambda self: self.running and self.disk.trial is not None)
    @rule(end=st.sampled_from(["fail", "spare", "accept"]))
    def trial_goes_on(self, end: str) -> None:
        before = self.memory
        assert before.trial is not None
        if end == "accept":
            self.write(rules.accept(before, self.slots, 0))
            self.good.add(self.disk.current)
            assert rules.previous_version(self.disk, self.slots) == self.slots[before.trial.back]
            return
        self.running = False
        if end == "spare":
            self.write(rules.spare_attempt(before))
            self.in_row -= 1
            return
        self.write(rules.fail_attempt(before, self.slots, "it failed", 0))
        if self.disk.trial is None:
            assert self.disk.current == before.trial.back
            assert self.disk.outcome is not None
            assert self.disk.outcome.result == "rolled-back"
            assert self.disk.outcome.reason == "it failed"

    @precondition(lambda self: self.running and self.disk.trial is None)
    @rule(code=st.sampled_from([0, 1, 3, 7, 70, -9, -11]), lived_s=st.sampled_from([1.0, 1e5]))
    def accepted_version_ends(self, code: int, lived_s: float) -> None:
        before = self.memory
        self.write(rules.after_end(before, self.slots, code, lived_s, LIMITS, 0))
        self.running = False
        if self.disk.current != before.current:
            assert before.deaths == MOST_DEATHS - 1
            assert self.disk.current in self.good

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def something_can_run(self) -> None:
        assert self.disk.current in self.slots

    @invariant()
    def a_version_that_has_not_worked_runs_on_trial_only(self) -> None:
        assert self.disk.current in self.good or self.disk.trial is not None

    @invariant()
    def the_way_back_is_a_version_that_has_worked(self) -> None:
        if self.disk.trial is not None:
            assert self.disk.trial.back in self.good
            assert self.disk.trial.back in self.slots


Switches.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSwitches = Switches.TestCase


def on_trial(attempts: int = 0) -> tuple[State, dict[str, Installed]]:
    slots = {slot: Installed(slot, version, version * 8) for slot, version in (("a", "0.1"), ("b", "0.2"))}
    asked = Request("1", "update", "b", slots["b"].sha256)
    state = rules.take_request(State("a"), asked, slots, 5.0)
    assert state.trial == Trial("update", "a")
    return replace(state, trial=Trial("update", "a", attempts)), slots


def test_a_version_that_is_not_there_any_more_is_not_switched_to() -> None:
    _, slots = on_trial()
    for asked in (Request("1", "update", "b", "0" * 64), Request("2", "update", "a", slots["a"].sha256)):
        state = rules.take_request(State("a"), asked, slots, 5.0)
        assert (state.current, state.trial) == ("a", None)
        assert state.outcome is not None
        assert (state.outcome.result, state.outcome.reason) == ("refused", "that version is not installed any more")


def test_the_way_back_is_the_version_that_ran_and_not_what_its_slot_holds_since() -> None:
    state, slots = on_trial()
    state = rules.accept(state, slots, 6.0)
    assert rules.previous_version(state, slots) == slots["a"]
    slots["a"] = Installed("a", "0.3", "3" * 64)
    assert rules.previous_version(state, slots) is None
    for _ in range(MOST_DEATHS + 1):
        state = rules.after_end(state, slots, 70, 1.0, LIMITS, 0)
    assert state.current == "b"


def test_a_request_is_taken_once_even_if_it_stays_on_the_disk() -> None:
    state, slots = on_trial()
    back = rules.take_request(state, Request("2", "rollback", "a", slots["a"].sha256), slots, 6.0)
    assert (back.current, back.trial) == ("a", None)
    assert back.outcome is not None
    assert (back.outcome.result, back.outcome.to_version) == ("rolled-back", "0.2")
    assert rules.take_request(back, Request("2", "rollback", "a", slots["a"].sha256), slots, 7.0) == back


def test_two_interrupted_attempts_are_enough_and_the_reason_says_so() -> None:
    state, slots = on_trial()
    for _ in range(MOST_ATTEMPTS):
        state = rules.begin_attempt(state, slots, 1.0)  # and the power is cut
        assert state.current == "b"
    state = rules.begin_attempt(state, slots, 2.0)
    assert (state.current, state.previous) == ("a", None)
    assert state.outcome is not None
    assert "cut off" in state.outcome.reason


def test_without_a_network_a_trial_goes_on_for_ever() -> None:
    state, slots = on_trial()
    for _ in range(50):
        state = rules.spare_attempt(rules.begin_attempt(state, slots, 1.0))
    assert state.current == "b"
    assert state.trial == Trial("update", "a", 0)


def test_a_version_whose_way_back_is_gone_stays() -> None:
    state, slots = on_trial(MOST_ATTEMPTS)
    state = rules.fail_attempt(state, {"b": slots["b"]}, "it failed", 1.0)
    assert (state.current, state.trial) == ("b", None)
    assert state.outcome is not None
    assert "the version before it is gone" in state.outcome.reason


@pytest.mark.parametrize("code", [0, 3, 4, 7, 8, 12])
def test_deaths_that_speak_of_the_surroundings_take_no_version_back(code: int) -> None:
    _, slots = on_trial()
    state = State("b", "a", slots["a"].sha256)
    for _ in range(3 * MOST_DEATHS):
        state = rules.after_end(state, slots, code, 1.0, LIMITS, 0)
    assert (state.current, state.deaths) == ("b", 0)


@pytest.mark.parametrize("code", [1, 70, 127, -11])
def test_an_accepted_version_that_dies_again_and_again_goes_back_once(code: int) -> None:
    _, slots = on_trial()
    state = State("b", "a", slots["a"].sha256)
    for _ in range(MOST_DEATHS):
        assert state.current == "b"
        state = rules.after_end(state, slots, code, 1.0, LIMITS, 0)
    assert (state.current, state.previous) == ("a", None)
    assert state.outcome is not None
    assert (state.outcome.result, state.outcome.to_version) == ("rolled-back", "0.2")
    for _ in range(3 * MOST_DEATHS):
        state = rules.after_end(state, slots, code, 1.0, LIMITS, 0)
    assert state.current == "a"


def test_deaths_with_a_long_life_in_between_are_no_row() -> None:
    _, slots = on_trial()
    state = State("b", "a", slots["a"].sha256)
    for _ in range(3 * MOST_DEATHS):
        state = rules.survived(rules.after_end(state, slots, 70, 1.0, LIMITS, 0))
        state = rules.after_end(state, slots, 70, 1.0, LIMITS, 0)
        state = rules.after_end(state, slots, -9, LIMITS.soon_s + 1, LIMITS, 0)
    assert (state.current, state.deaths) == ("b", 0)


@pytest.mark.parametrize(
    ("signs", "now", "verdict"),
    [
        (Signs("", 0), 300, "wait"),
        (Signs("", 0), 301, "late"),
        (Signs("started", 0), 301, "late"),
        (Signs("connecting", 0), 301, "unreachable"),
        (Signs("serving", 0, 50, 60), 149, "wait"),
        (Signs("serving", 0, 50, 149), 150, "wait"),  # it may have stopped a second ago
        (Signs("serving", 0, 50, 151), 152, "accept"),
        (Signs("serving", 0, 50, None), 450, "wait"),
        (Signs("serving", 0, 50, 149), 451, "silent"),
    ],
)
def test_verdicts(signs: Signs, now: float, verdict: str) -> None:
    assert judge(signs, LIMITS, now) == verdict


states = st.builds(
    State,
    current=st.just("a"),
    previous=st.sampled_from([None, "b"]),
    previous_sha256=st.text(max_size=8),
    trial=st.none()
    | st.builds(Trial, st.sampled_from(["update", "rollback"]), st.just("b"), st.integers(0, 3), st.text()),
    deaths=st.integers(0, 9),
    request=st.text(max_size=8),
    outcome=st.none()
    | st.builds(
        Outcome, st.just("update"), st.sampled_from(["accepted", "refused"]), st.text(), st.text(), st.text(), st.text()
    ),
)


@settings(max_examples=40, deadline=None)
@given(state=states, at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_state_comes_back_as_it_was_or_is_known_to_be_damaged(
    tmp_path_factory: pytest.TempPathFactory, state: State, at: int, value: int
) -> None:
    root = tmp_path_factory.mktemp("state")
    write_state(root, state)
    assert read_state(root) == state
    path = root / "state.json"
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    try:
        assert read_state(root) == state
    except StateDamagedError:
        return


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"[]", b"null", b'{"v": 2}', b"[" * 100_000, b'{"v": 1, "state": {"current": "a"}}', b"\xff"],
)
def test_a_damaged_state_is_said(tmp_path: Path, data: Any) -> None:
    (tmp_path / "state.json").write_bytes(data)
    with pytest.raises(StateDamagedError, match="damaged"):
        read_state(tmp_path)
