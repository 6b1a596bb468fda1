"""The bandit: what it learns, what it never chooses, and how it corrects wrong profiles."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bandit import gains as gain_model
from server.bandit.arms import Arm, PricedArm, backprop_arms, forward_arms
from server.bandit.choices import Candidate, Choice, expected_s
from server.bandit.choose import choose
from server.bandit.gains import Gains
from server.bandit.options import BanditOptions
from server.bandit.state import BanditState, Reported, observe_loss, observe_reports
from server.bandit.step_times import FADE_S, DeviceTimes, base_seconds, expected, observe

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = backprop_arms([2, 6, 12])
POLICIES = ["thompson", "paper", "ucb", "epsilon", "uniform", "fixed"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def priced_arms(unit_s: float | None, left_out: Mapping[Arm, str] | None = None) -> list[PricedArm]:
    return [
        PricedArm(
            arm, float(arm.level or 0), None if unit_s is None else unit_s * (arm.level or 0), (left_out or {}).get(arm)
        )
        for arm in LEVELS
    ]


def run(
    gain: Mapping[int, float],
    speed: Mapping[str, Any],
    rounds: int,
    *,
    policy: str = "thompson",
    state: BanditState | None = None,
    profile: Mapping[str, float] | None = None,
) -> tuple[BanditState, list[list[Choice]]]:
    """Play rounds with the gain of each level and the seconds per layer of each device (or a function of the round)."""
    options = BanditOptions(policy=policy)  # type: ignore[arg-type]
    state = observe_loss(options, state or BanditState(), None, 100.0)
    loss, now, chance, history = 100.0, 0.0, rng(3), []
    for index in range(rounds):
        candidates = [
            Candidate(name, 1 / len(speed), priced_arms((profile or {}).get(name, 1.0))) for name in sorted(speed)
        ]
        state, choices = choose(options, state, candidates, len(candidates), 1e6, now, chance)
        history.append(choices)
        reports, length = [], 0.0
        for choice in choices:
            estimate = choice.estimate
            assert estimate is not None
            assert choice.arm is not None
            pace = speed[choice.device]
            seconds = (choice.arm.level or 0) * (pace(index) if callable(pace) else pace)
            length = max(length, seconds)
            loss -= gain[choice.arm.level or 0] / len(choices) * (1 + 0.1 * chance.standard_normal())
            reports.append(
                Reported(
                    choice.device,
                    choice.arm,
                    1 / len(choices),
                    estimate.cost,
                    estimate.base_s,
                    seconds,
                    seconds + 0.1,
                    now,
                )
            )
        now += length
        state = observe_reports(state, index, reports)
        state = observe_loss(options, state, index, loss)
    return state, history


def levels_of(choices: list[Choice]) -> dict[str, int | None]:
    return {choice.device: choice.arm.level if choice.arm else None for choice in choices}


@pytest.mark.parametrize(("gain", "best"), [({2: 0.1, 6: 1.0, 12: 1.1}, 6), ({2: 0.1, 6: 0.3, 12: 1.0}, 12)])
def test_the_arm_with_the_most_gain_a_second_is_found(gain: dict[int, float], best: int) -> None:
    _, history = run(gain, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 40)
    late = [level for choices in history[25:] for level in levels_of(choices).values()]
    assert late.count(best) / len(late) > 0.7


def test_quick_devices_go_deeper_within_a_round() -> None:
    """The best round lasts 2 s: within it the slow devices run 2 layers, and the quick one runs 6 in 1.5 s."""
    _, history = run({2: 0.5, 6: 1.0, 12: 1.5}, {"quick": 0.25, "slow": 1.0, "slow2": 1.0}, 40, profile={"quick": 0.25})
    late = [levels_of(choices) for choices in history[25:]]
    assert sum((entry["quick"] or 0) >= (entry["slow"] or 0) for entry in late) > 0.8 * len(late)
    assert sum(entry == {"quick": 6, "slow": 2, "slow2": 2} for entry in late) > 0.6 * len(late)


def test_a_new_device_starts_with_what_the_fleet_learned() -> None:
    state, _ = run({2: 0.1, 6: 1.0, 12: 1.1}, dict.fromkeys("abcd", 1.0), 40)
    draws = []
    for seed in range(20):
        candidate = Candidate("new", 1.0, priced_arms(0.5))
        _, choices = choose(BanditOptions(), state, [candidate], 1, 1e6, 0.0, rng(seed))
        draws.append(levels_of(choices)["new"])
    assert draws.count(6) > 15


def test_a_device_that_throttles_changes_its_arm_within_three_rounds() -> None:
    """Four quick devices decide the round's length; the hot one cannot keep up with its level any more."""
    fleet: dict[str, Any] = dict.fromkeys("abcd", 1.0)
    fleet["hot"] = lambda index: 1.0 if index < 30 else 3.0
    _, history = run({2: 0.1, 6: 1.0, 12: 1.05}, fleet, 40)
    before = [levels_of(choices)["hot"] for choices in history[20:30]]
    after = [levels_of(choices)["hot"] for choices in history[33:]]
    assert before.count(6) > 6
    assert after.count(2) >= 5


@pytest.mark.parametrize("policy", POLICIES)
def test_what_does_not_fit_is_never_offered(policy: str) -> None:
    options = BanditOptions(policy=policy)  # type: ignore[arg-type]
    state, reason = BanditState(), {LEVELS[1]: "does not fit into memory"}
    for index in range(30):
        candidates = [Candidate("a", 0.5, priced_arms(1.0, reason)), Candidate("b", 0.5, priced_arms(9.0))]
        state, choices = choose(options, state, candidates, 2, 12.0 / 0.9 + 7, float(index), rng(index))
        assert choices[0].arm in (LEVELS[0], LEVELS[2])
        assert choices[0].estimates[1].left_out == "does not fit into memory"
        assert choices[1].arm == LEVELS[0]
        assert "deadline" in (choices[1].estimates[2].left_out or "")


def test_without_an_arm_there_is_no_work_and_a_reason() -> None:
    _, (choice,) = choose(
        BanditOptions(), BanditState(), [Candidate("a", 1.0, priced_arms(100.0))], 1, 10.0, 0.0, rng()
    )
    assert choice.arm is None
    assert choice.why == "no arm fits this device"
    assert expected_s([choice], 1) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_survives_encoding_and_the_choice_is_the_same(policy: str) -> None:
    options = BanditOptions(policy=policy)  # type: ignore[arg-type]
    state, _ = run({2: 0.5, 6: 1.0, 12: 1.2}, {"a": 1.0, "b": 2.0}, 8, policy=policy)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=BanditState)
    candidates = [Candidate("a", 0.5, priced_arms(1.0)), Candidate("b", 0.5, priced_arms(1.0))]
    first = choose(options, state, candidates, 2, 1e6, 5.0, rng(7))
    assert choose(options, again, candidates, 2, 1e6, 5.0, rng(7)) == first
    for choice in first[1]:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(choice), type=Choice) == choice


@pytest.mark.parametrize("policy", POLICIES)
def test_an_arm_that_vanished_is_forgotten_and_a_new_one_is_there(policy: str) -> None:
    options = BanditOptions(policy=policy)  # type: ignore[arg-type]
    state, _ = run({2: 0.5, 6: 1.0, 12: 1.2}, {"a": 1.0}, 12, policy=policy)
    new = [PricedArm(Arm("backprop", level=level), float(level), float(level)) for level in (3, 6)]
    for index in range(10):
        state, (choice,) = choose(options, state, [Candidate("a", 1.0, new)], 1, 1e6, 0.0, rng(index))
        assert choice.arm is not None
        assert choice.arm.level in (3, 6)
    assert state.gains.arms == ["level 3", "level 6"]


def test_one_split_a_round() -> None:
    arms = forward_arms([4, 8], [2, 8])
    made = [PricedArm(arm, float(index + 1), float(index + 1)) for index, arm in enumerate(arms)]
    for seed in range(10):
        candidates = [Candidate("a", 0.5, made), Candidate("b", 0.5, made)]
        state, choices = choose(BanditOptions(), BanditState(), candidates, 2, 1e6, 0.0, rng(seed))
        assert len({choice.arm.split for choice in choices if choice.arm}) == 1
        assert len(state.gains.arms) == 4


def test_a_liar_is_overruled_by_its_first_report(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        times = observe(None, "level 12", 0.12, 12.0, 12.5, 0.0, "liar")
    assert "liar" in caplog.text
    made = PricedArm(LEVELS[2], 12.0, 0.12)
    assert expected(made, 0.12, times, 0.0, 0.0).steps_s == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("reported_s", "turnaround_s"), [(0.0, 5.0), (-3.0, 5.0), (math.nan, 5.0), (math.inf, 5.0), (5.0, -1.0)]
)
def test_times_that_cannot_be_change_nothing(
    reported_s: float, turnaround_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    before = DeviceTimes(slowdown=0.5, reported_at=3.0)
    assert observe(before, "level 2", 1.0, reported_s, turnaround_s, 4.0) is before
    assert "says nothing" in caplog.text


def test_a_clock_that_jumped_is_bounded_by_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    times = observe(None, "level 2", 2.0, 86_400.0, 4.0, 0.0)
    assert math.exp(times.slowdown) == pytest.approx(2.0)
    assert "clock jumped" in caplog.text
    made = PricedArm(LEVELS[0], 2.0, 2.0)  # the server's own clock began anew: the report is from its future
    assert expected(made, 2.0, times, -1e9, 0.0).steps_s == pytest.approx(4.0)


def test_a_slowdown_that_nothing_confirms_fades() -> None:
    times, made = observe(None, "level 2", 2.0, 8.0, 8.0, 0.0), PricedArm(LEVELS[0], 2.0, 2.0)
    assert expected(made, 2.0, times, FADE_S, 0.0).steps_s == pytest.approx(4.0)
    assert expected(made, 2.0, times, 50 * FADE_S, 0.0).steps_s == pytest.approx(2.0)


def test_missing_graphs_follow_from_those_that_are_there() -> None:
    partly = [PricedArm(LEVELS[0], 2.0, 1.0), PricedArm(LEVELS[1], 6.0), PricedArm(LEVELS[2], 12.0, 6.0)]
    assert base_seconds(partly, None) == [1.0, 3.0, 6.0]
    assert base_seconds([PricedArm(LEVELS[1], 6.0)], 0.25) == [1.5]
    assert base_seconds([PricedArm(LEVELS[1], 6.0)], None) == [None]


@given(
    times=st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=10),
    losses=st.lists(st.floats(allow_nan=True), max_size=10),
    policy=st.sampled_from(POLICIES),
)
def test_whatever_is_reported_a_choice_is_made(
    times: list[tuple[float, float]], losses: list[float], policy: str
) -> None:
    options = BanditOptions(policy=policy)  # type: ignore[arg-type]
    state = observe_loss(options, BanditState(), None, 1.0)
    candidates = [Candidate("a", 1.0, priced_arms(1.0))]
    for index, ((reported, turnaround), loss) in enumerate(zip(times, losses, strict=False)):
        state, (choice,) = choose(options, state, candidates, 1, math.inf, float(index), rng(index))
        assert choice.arm in LEVELS
        entry = Reported("a", LEVELS[0], 1.0, 2.0, 2.0, reported, turnaround, float(index))
        state = observe_loss(options, observe_reports(state, index, [entry]), index, loss)
    _, (choice,) = choose(options, state, candidates, 1, math.inf, 0.0, rng())
    assert choice.arm in LEVELS


def test_gains_of_arms_are_told_apart_while_all_of_them_shrink() -> None:
    gains = gain_model.with_arms(Gains(), {"a": 1.0, "b": 1.0})
    for index in range(60):
        share = (index % 5) / 4
        gain = 0.97**index * (share * 1.0 + (1 - share) * 0.25)
        gains = gain_model.observe_gain(gains, {"a": share, "b": 1 - share}, gain, 0.95)
    (a, _), (b, _) = gain_model.mean_gains(gains)
    assert 2.5 < a / b < 6
