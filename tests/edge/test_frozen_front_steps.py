"""Steps whose front is frozen: no front directions anywhere, the right estimate behind it, and an exact replay."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_logs import FRONT_SIZE, THETA, make_log, rules

from edge_runtime.data.batch import Batch
from edge_runtime.engines.quadratic import QuadraticEngine
from edge_runtime.errors import ConfigError
from edge_runtime.forward_only.coefficients import apply_step, step_coefficients
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.replay import compact, replay
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.round_log import decode_chain, encode_chain
from edge_runtime.protocol.step_rule import StepRule, check_rule

BATCH = Batch(np.ones((1, 2), np.int64), np.ones((1, 2), np.int64), np.zeros(1, np.int64))
SIZE, FRONT = 20, 8


def frozen(rule: StepRule) -> StepRule:
    return msgspec.structs.replace(rule, front="frozen")


def bowl() -> QuadraticEngine:
    rng = np.random.Generator(np.random.PCG64(5))
    root = rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    return QuadraticEngine(root @ root.T + 0.1 * np.eye(SIZE), rng.normal(size=SIZE), FRONT)


@given(rule=rules)
def test_only_the_back_has_directions_and_scalars(rule: StepRule) -> None:
    seeds = step_seeds(frozen(rule), 1, 2, "device", 3)
    assert seeds.front == ()
    assert len(seeds.back) == frozen(rule).scalars_per_step == rule.back_perturbations
    assert frozen(rule).front_directions == 0


@pytest.mark.parametrize("variant", ["nested", "clean"])
@pytest.mark.parametrize("difference", ["central", "forward"])
def test_the_mean_estimate_is_the_backs_gradient_and_the_front_stays(variant: str, difference: str) -> None:
    engine, theta = bowl(), np.linspace(-1, 1, SIZE, dtype=np.float32)
    rule = frozen(
        msgspec.convert(
            {"variant": variant, "difference": difference, "front_perturbations": 3, "back_perturbations": 4}
            | {"learning_rate": 1.0, "normalize": "none", "eps": 1e-3},
            StepRule,
        )
    )
    moves = []
    for step in range(2000):
        seeds = step_seeds(rule, 1, 0, "device", step)
        result = spzo_step(engine, theta, BATCH, rule, seeds)
        assert result.front_passes == 1
        coefficients, _ = step_coefficients(result.scalars.tolist(), rule, None)
        moved = np.zeros(SIZE, np.float32)
        apply_step(moved, FRONT, seeds, coefficients)
        moves.append(-moved.astype(np.float64))
    found, gradient = np.array(moves), bowl().gradient(theta)
    assert not found[:, :FRONT].any()
    error = np.abs(found.mean(axis=0) - gradient)[FRONT:]
    assert (error <= 5 * found.std(axis=0)[FRONT:] / np.sqrt(len(found)) + 2e-2).all()


@settings(deadline=None)
@given(rule=rules, devices=st.integers(1, 3))
def test_a_replay_leaves_the_front_and_gives_the_same_bits_after_the_wire(rule: StepRule, devices: int) -> None:
    rule = frozen(rule)
    log = make_log(rule, devices)
    after = replay(THETA, log)
    assert after[:FRONT_SIZE].tobytes() == THETA[:FRONT_SIZE].tobytes()
    assert after[FRONT_SIZE:].tobytes() != THETA[FRONT_SIZE:].tobytes()
    assert replay(THETA, decode_chain(encode_chain([compact(log)]))[0]).tobytes() == after.tobytes()


def test_devices_step_by_step_end_where_the_replay_ends() -> None:
    """One device: its own steps, applied one after the other, and the log's replay give the same bits."""
    rule = frozen(StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True))
    log = make_log(rule, 1, steps=3)
    local, mean_square = THETA.copy(), None
    scalars = np.frombuffer(log.devices[0].scalars, "<f4").reshape(3, rule.scalars_per_step)
    for step, row in enumerate(scalars):
        coefficients, mean_square = step_coefficients(row.tolist(), rule, mean_square)
        apply_step(
            local, FRONT_SIZE, step_seeds(rule, log.job_seed, log.round, log.devices[0].device, step), coefficients
        )
    assert local.tobytes() == replay(THETA, log).tobytes()


def test_a_rule_that_trains_the_front_is_encoded_as_before() -> None:
    """Devices that do not know the field go on: it is left out where nothing is frozen."""
    assert b"front\xa6" not in msgspec.msgpack.encode(StepRule())
    assert "front" not in msgspec.to_builtins(StepRule())
    assert msgspec.to_builtins(frozen(StepRule()))["front"] == "frozen"


def test_std_needs_two_scalars_of_the_back() -> None:
    rule = StepRule(normalize="std", front_perturbations=4, back_perturbations=1)
    check_rule(rule)
    with pytest.raises(ConfigError, match="a frozen front gives only those of the back"):
        check_rule(frozen(rule))
