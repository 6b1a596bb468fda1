"""The bandit and a frozen front: rounds that run it and rounds that look it up are not mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from fleets import edge_configs, write_job

from edge_runtime.protocol.step_rule import StepRule
from server.bandit.arms import Arm, PriceBasis, forward_arms, passes, price, price_left
from server.bandit.choices import Estimate
from server.bandit.state import BanditState, Reported, observe_reports
from server.bandit.step_times import expected
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

FROZEN = StepRule(back_perturbations=4, front="frozen")
BASIS = PriceBasis(layers=6, tokens=32, steps=4, batch_size=8, rule=FROZEN)
(ARM,) = forward_arms([5], [4], front_is_frozen=True)


def test_a_frozen_front_costs_one_pass_and_then_none() -> None:
    assert passes(FROZEN, 4) == (1, 8)
    assert passes(msgspec.structs.replace(FROZEN, difference="forward", front_perturbations=3), 4) == (1, 5)
    priced = price(ARM, BASIS, None)
    assert priced.cost == pytest.approx(32 * (5 / 6 + 8 / 6))
    assert priced.front_share == pytest.approx(5 / 13)
    assert price_left(priced.front_share, 1.0) == 1.0
    assert priced.cost * price_left(priced.front_share, 0.0) == pytest.approx(32 * 8 / 6)
    assert price(Arm("forward", split=5, back_perturbations=4), BASIS, None).front_share > 0
    trained = msgspec.structs.replace(BASIS, rule=StepRule(back_perturbations=4))
    assert price(ARM, trained, None).front_share == 0


def test_the_name_of_an_arm_says_that_the_front_is_frozen() -> None:
    assert ARM.name == "split 5 x 4, frozen front"
    assert Arm("forward", split=5, back_perturbations=4).name == "split 5 x 4"
    assert msgspec.convert({"kind": "forward", "split": 5, "back_perturbations": 4}, Arm).front_is_frozen is False


def reported(index: int, cold: float, seconds: float) -> Reported:
    priced = price(ARM, BASIS, None)
    return Reported(
        "pi", ARM, 1.0, priced.cost, priced.cost * 0.1, seconds, seconds + 0.5, float(index), cold, priced.front_share
    )


def test_a_device_is_as_fast_in_the_first_epoch_as_in_the_next() -> None:
    """Twice as slow as predicted in each round, whether the front was run for all rows, for some or for none."""
    priced, state = price(ARM, BASIS, None), BanditState()
    base_s = priced.cost * 0.1
    for index, cold in enumerate([1.0, 1.0, 0.4, 0.0, 0.0]):
        seconds = 2 * base_s * price_left(priced.front_share, cold)
        state = observe_reports(state, index, [reported(index, cold, seconds)])
        times = state.times["pi"]
        assert times.slowdown + times.arms.get(ARM.name, 0.0) == pytest.approx(0.6931, abs=1e-3)
        assert times.cold == cold
        steps_s = expected(priced, base_s, times, float(index), 0.0).steps_s
        assert steps_s == pytest.approx(seconds)  # the next round, if it is as warm as this one
        assert state.per_pass["pi"] == pytest.approx(0.2)


def test_old_choices_are_still_read() -> None:
    """The ledger of an older server has estimates without the front's share."""
    old = msgspec.msgpack.encode([msgspec.to_builtins(ARM), 2.0, None, None, "unknown", None, None, None, None])
    assert msgspec.msgpack.decode(old, type=Estimate).front_share == 0.0


def test_a_real_bandit_prices_both_phases_and_learns_what_was_looked_up(tmp_path: Path, tiny_bundle: Bundle) -> None:
    bandit = {"policy": "uniform", "back_perturbations": [2, 3]}
    path = write_job(tmp_path, rounds=6, steps=4, min_devices=2, bandit=bandit, front="train-after:5", split=1)
    fitted, bundle = load_job(path, tiny_bundle.path)
    run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 2))
    ledger = Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)
    frozen = [
        choice.arm.front_is_frozen
        for made in queries.attempts_of(ledger, "job")
        for choice in queries.choices_of(ledger, "job", made.index, made.attempt)
        if choice.arm is not None
    ]
    assert frozen == [True] * 10 + [False] * 2
    state = queries.bandit_state(ledger, "job")
    assert state is not None
    assert {times.cold for times in state.times.values()} <= {0.0}  # 64 rows used by the fourth round, of 24 and 28
