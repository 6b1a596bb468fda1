"""Replay: the same bits everywhere, in a fixed order, with every border checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.layout import adapter_sha256
from edge_runtime.replay import (
    SCALAR_BOUND,
    DeviceScalars,
    RoundLog,
    apply_step,
    mean_square_of,
    pack_scalars,
    replay,
    replay_checked,
    step_coefficients,
    unpack_scalars,
)
from edge_runtime.spzo import StepRule, step_seeds
from edge_runtime.workshop import decode_log, encode_log

N, FRONT_SIZE = 300, 130

rules = st.builds(
    StepRule,
    variant=st.sampled_from(["nested", "clean"]),
    front_perturbations=st.integers(1, 3),
    back_perturbations=st.integers(1, 5),
    learning_rate=st.floats(1e-4, 1.0),
    leave_one_out=st.booleans(),
    normalize=st.sampled_from(["none", "rms"]),
)


def make_log(rule: StepRule, devices: int = 2, steps: int = 2, seed: int = 0, **changes: Any) -> RoundLog:
    rng = np.random.Generator(np.random.PCG64(seed))
    entries = [
        DeviceScalars(
            f"device-{index}",
            1 / devices,
            pack_scalars(rng.normal(size=(steps, rule.scalars_per_step)).astype(np.float32)),
        )
        for index in range(devices)
    ]
    log = RoundLog(
        v=1, job="job", job_seed=11, round=3, rule=rule, front_size=FRONT_SIZE, steps=steps, mean_square=None,
        base_sha256="0" * 64, result_sha256="0" * 64, devices=entries,
    )  # fmt: skip
    return msgspec.structs.replace(log, **changes)


THETA = np.linspace(-1, 1, N, dtype=np.float32)


@settings(deadline=None)
@given(rule=rules, devices=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_log_gives_the_same_bits_after_the_wire(rule: StepRule, devices: int, seed: int) -> None:
    log = make_log(rule, devices, seed=seed)
    assert replay(THETA, decode_log(encode_log(log))).tobytes() == replay(THETA, log).tobytes()


@settings(deadline=None)
@given(rule=rules, seed=st.integers(0, 1000), mean_square=st.none() | st.floats(1e-3, 1e3))
def test_one_devices_replay_is_its_local_model(rule: StepRule, seed: int, mean_square: float | None) -> None:
    """With one device of weight 1 the server rebuilds, bit for bit, what the device reached by its own steps."""
    log = make_log(rule, 1, steps=3, seed=seed, mean_square=mean_square)
    local, running = THETA.copy(), mean_square
    for step, scalars in enumerate(unpack_scalars(log.devices[0].scalars, 3, rule.scalars_per_step)):
        coefficients, running = step_coefficients(scalars, rule, running)
        apply_step(local, FRONT_SIZE, step_seeds(rule, 11, 3, "device-0", step), coefficients)
    assert replay(THETA, log).tobytes() == local.tobytes()


def test_the_result_is_the_weighted_mean_of_the_local_models() -> None:
    rule = StepRule(back_perturbations=4)
    log = make_log(rule, 3)
    weights = (0.5, 0.3, 0.2)
    entries = [DeviceScalars(d.device, w, d.scalars) for d, w in zip(log.devices, weights, strict=True)]
    local = [
        replay(THETA, msgspec.structs.replace(log, devices=[DeviceScalars(d.device, 1.0, d.scalars)])) for d in entries
    ]
    expected = sum(weight * model.astype(np.float64) for weight, model in zip(weights, local, strict=True))
    found = replay(THETA, msgspec.structs.replace(log, devices=entries))
    assert np.abs(found - expected).max() < 1e-5


def test_golden_adapter() -> None:
    """Pinned: both sides of every fleet in the field must keep giving this hash."""
    log = make_log(StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True, learning_rate=0.01), 3)
    assert adapter_sha256(replay(THETA, log)) == "c52e053c7932bc74fed92c63f3eb7ee09436913f627348440ccb043be09ea54f"


def test_replay_leaves_its_input_alone() -> None:
    before = THETA.copy()
    replay(THETA, make_log(StepRule()))
    assert THETA.tobytes() == before.tobytes()


def test_normalisation_makes_the_step_independent_of_the_losses_scale() -> None:
    rule = StepRule(back_perturbations=4, normalize="rms")
    small, _ = step_coefficients([1.0, -2.0, 3.0, 0.5], rule, None)
    large, _ = step_coefficients([1024.0, -2048.0, 3072.0, 512.0], rule, None)
    assert dataclasses.astuple(small) == dataclasses.astuple(large)


def test_all_scalars_zero_means_no_step() -> None:
    coefficients, mean_square = step_coefficients([0.0] * 8, StepRule(back_perturbations=8), None)
    assert set(coefficients.front + coefficients.back) == {0.0}
    assert mean_square == 0.0


def test_hand_computed_coefficients() -> None:
    """P1 = 1, P2 = 2, g = (3, 1): front mean 2; leave-one-out back (3 − 1, 1 − 3)/2; minus the learning rate."""
    rule = StepRule(back_perturbations=2, leave_one_out=True, learning_rate=0.5, normalize="none")
    coefficients, _ = step_coefficients([3.0, 1.0], rule, None)
    assert coefficients.front == (-1.0,)
    assert coefficients.back == (-0.5, 0.5)


def test_checked_replay_names_a_wrong_base_and_a_wrong_result() -> None:
    log = make_log(StepRule())
    with pytest.raises(TrainingError, match="starts from"):
        replay_checked(THETA, log)
    log = msgspec.structs.replace(log, base_sha256=adapter_sha256(THETA))
    with pytest.raises(TrainingError, match="ended on"):
        replay_checked(THETA, log)
    good = msgspec.structs.replace(log, result_sha256=adapter_sha256(replay(THETA, log)))
    assert adapter_sha256(replay_checked(THETA, good)) == good.result_sha256


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2 * SCALAR_BOUND])
def test_scalars_out_of_bounds_are_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="scalar"):
        unpack_scalars(pack_scalars(np.array([0.0, value], np.float32)), 1, 2)


def test_scalars_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ProtocolError, match="bytes of scalars"):
        unpack_scalars(b"\0" * 12, 2, 2)


@given(data=st.binary(max_size=300))
def test_broken_logs_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_log(data)


def test_a_log_of_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="version 2"):
        decode_log(encode_log(make_log(StepRule(), v=2)))


def test_mean_square() -> None:
    assert mean_square_of([[[1.0, 2.0]], [[3.0, 0.0]]]) == pytest.approx(3.5)
    assert mean_square_of([]) is None
