"""Replay: the same bits everywhere, in a fixed order, with every border checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_logs import make_log

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.forward_only.coefficients import apply_step, step_coefficients
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.replay import compact, mean_square_of, replay
from edge_runtime.forward_only.replay_file import follow_logs, write_replayed
from edge_runtime.perturbation.perturb import BACK, FRONT, rademacher
from edge_runtime.protocol.round_log import (
    SCALAR_BOUND,
    DeviceScalars,
    LogChain,
    RoundLog,
    decode_chain,
    encode_chain,
    pack_scalars,
    unpack_scalars,
)
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.values import FloatVector

N, FRONT_SIZE = 300, 130

rules = st.builds(
    StepRule,
    variant=st.sampled_from(["nested", "clean"]),
    front_perturbations=st.integers(1, 3),
    back_perturbations=st.integers(1, 5),
    learning_rate=st.floats(1e-4, 1.0),
    leave_one_out=st.booleans(),
    difference=st.sampled_from(["central", "forward"]),
    normalize=st.sampled_from(["none", "rms"]),
)


THETA = np.linspace(-1, 1, N, dtype=np.float32)


@settings(deadline=None)
@given(rule=rules, devices=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_log_gives_the_same_bits_after_the_wire(rule: StepRule, devices: int, seed: int) -> None:
    log = make_log(rule, devices, seed=seed)
    assert replay(THETA, decode_chain(encode_chain([log]))[0]).tobytes() == replay(THETA, log).tobytes()


@pytest.mark.parametrize("rule", [StepRule(back_perturbations=3), StepRule(variant="clean", normalize="none")])
def test_a_device_with_another_p2_moves_as_in_a_log_of_its_own(rule: StepRule) -> None:
    """A round is the weighted sum of what its devices would do alone, whatever the rule's P2."""
    other = msgspec.structs.replace(rule, back_perturbations=5)
    alone = [make_log(rule, 1, mean_square=1.0), make_log(other, 1, seed=1, mean_square=1.0)]
    entries = [
        DeviceScalars("a", 1.0, alone[0].devices[0].scalars),
        DeviceScalars("b", 1.0, alone[1].devices[0].scalars, 5),
    ]
    both = decode_chain(encode_chain([msgspec.structs.replace(alone[0], devices=entries)]))[0]
    assert both.devices[1].back_perturbations == 5
    parts = [
        replay(THETA, msgspec.structs.replace(log, devices=[DeviceScalars(name, 1.0, log.devices[0].scalars)])) - THETA
        for name, log in zip("ab", alone, strict=True)
    ]
    np.testing.assert_allclose(replay(THETA, both) - THETA, parts[0] + parts[1], rtol=1e-4, atol=1e-6)


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


def chain_of(rounds: int, momentum: float = 0.0, **rule: Any) -> tuple[list[RoundLog], list[FloatVector]]:
    """Logs of consecutive rounds, and the adapters before, between and after them."""
    logs, thetas = [], [THETA]
    for index in range(rounds):
        before = adapter_sha256(thetas[-2]) if momentum and index else None
        log = make_log(
            StepRule(**rule),
            3,
            seed=index,
            round=index,
            momentum=momentum,
            previous_sha256=before,
            base_sha256=adapter_sha256(thetas[-1]),
        )
        thetas.append(replay(thetas[-1], log, thetas[-2] if before else None))
        logs.append(compact(msgspec.structs.replace(log, result_sha256=adapter_sha256(thetas[-1]))))
    return logs, thetas


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_chain_is_followed_in_one_pass_to_the_same_bits(tmp_path: Path, momentum: float) -> None:
    logs, thetas = chain_of(4, momentum)
    for first in range(4):
        previous = thetas[first - 1] if momentum and first else None
        path, before = tmp_path / "after", tmp_path / "before"
        follow_logs(path, thetas[first], adapter_sha256(thetas[first]), logs[first:], previous, before)
        assert path.read_bytes() == thetas[-1].tobytes()
        assert before.read_bytes() == thetas[-2].tobytes()


def test_momentum_repeats_a_share_of_the_last_movement() -> None:
    _, thetas = chain_of(2, 0.5)
    logs, _ = chain_of(2)
    plain = replay(thetas[1], msgspec.structs.replace(logs[1], previous_sha256=None))
    assert np.abs(thetas[2] - (plain + 0.5 * (thetas[1] - thetas[0]))).max() < 1e-5


def test_a_wrong_base_a_gap_a_wrong_result_and_a_missing_adapter_are_named(tmp_path: Path) -> None:
    logs, _ = chain_of(3)
    path = tmp_path / "after"
    with pytest.raises(TrainingError, match="gap: round 0 starts from"):
        follow_logs(path, THETA, "1" * 64, logs)
    with pytest.raises(TrainingError, match="gap: round 2 starts from"):
        follow_logs(path, THETA, adapter_sha256(THETA), [logs[0], logs[2]])
    lie = msgspec.structs.replace(logs[2], result_sha256="2" * 64)
    with pytest.raises(TrainingError, match="ended on"):
        follow_logs(path, THETA, adapter_sha256(THETA), [*logs[:2], lie])
    with pytest.raises(TrainingError, match="the previous adapter is missing"):
        replay(THETA, chain_of(2, 0.5)[0][1])
    with pytest.raises(TrainingError, match="not finite"):
        write_replayed(path, np.full(N, np.inf, np.float32), [make_log(StepRule())])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rule", [{"shared_directions": True}, {"seed_pool": 5}, {"seed_pool": 3, "variant": "clean"}])
def test_shared_directions_make_a_log_that_does_not_grow_with_the_cohort(rule: dict[str, Any]) -> None:
    few, many = (make_log(StepRule(**rule, front_perturbations=2), devices) for devices in (2, 40))
    for log in (few, many):
        short = compact(log)
        assert replay(THETA, decode_chain(encode_chain([short]))[0]).tobytes() == replay(THETA, log).tobytes()
        assert short.devices == []
    assert len(encode_chain([compact(many)])) < 1.2 * len(encode_chain([compact(few)]))
    assert len(encode_chain([compact(many)])) < 0.2 * len(encode_chain([many]))
    assert compact(make_log(StepRule())) == make_log(StepRule())


def test_shared_directions_average_the_devices_scalars() -> None:
    """DeComFL (Li et al., ICLR 2025): the model moves along shared directions by the mean of the devices' scalars."""
    rule = StepRule(
        front_perturbations=2,
        back_perturbations=1,
        difference="forward",
        shared_directions=True,
        normalize="none",
        learning_rate=0.1,
    )
    devices = [
        DeviceScalars("a", 0.5, pack_scalars(np.array([1.0, 2.0], np.float32))),
        DeviceScalars("b", 0.5, pack_scalars(np.array([3.0, -4.0], np.float32))),
    ]
    found = replay(THETA, msgspec.structs.replace(make_log(rule, steps=1), devices=devices))
    seeds = step_seeds(rule, 11, 3, "anyone", 0)
    expected = THETA.astype(np.float64)
    for index, mean in enumerate((2.0, -1.0)):
        z = np.concatenate(
            [
                rademacher(seeds.front[index], FRONT, 0, FRONT_SIZE),
                rademacher(seeds.back[index], BACK, 0, N - FRONT_SIZE),
            ]
        )
        expected -= 0.1 * mean / 2 * z
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"back": b"123"}, "broken list"),
        ({"back": np.array([np.inf], "<f4").tobytes()}, "not finite"),
        ({"back_pool": np.array([5], "<u4").tobytes(), "back": b"\0" * 4}, "outside its pool"),
        ({"back_pool": b""}, "more coefficients"),
    ],
)
def test_broken_terms_are_refused(change: dict[str, bytes], message: str) -> None:
    log = compact(make_log(StepRule(seed_pool=5)))
    assert log.terms is not None
    with pytest.raises(ProtocolError, match=message):
        replay(THETA, msgspec.structs.replace(log, terms=msgspec.structs.replace(log.terms, **change)))
    with pytest.raises(ProtocolError, match="does not share"):
        replay(THETA, msgspec.structs.replace(log, rule=StepRule()))


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
        decode_chain(data)


def test_a_log_of_another_version_and_an_empty_one_are_refused() -> None:
    with pytest.raises(ProtocolError, match="version 3"):
        decode_chain(msgspec.msgpack.encode(LogChain(3, [make_log(StepRule())])))
    with pytest.raises(ProtocolError, match="is not valid"):
        decode_chain(encode_chain([]))


def test_sums_are_rounded_in_order_whatever_python_does() -> None:
    """Since Python 3.12 the built-in sum compensates: a fleet of several versions would not agree."""
    rule = StepRule(back_perturbations=3, learning_rate=1.0, normalize="none")
    coefficients, _ = step_coefficients([1e16, 1.0, -1e16], rule, None)
    assert coefficients.front == (0.0,)


def test_a_mean_square_below_zero_is_refused() -> None:
    with pytest.raises(ProtocolError, match="mean_square"):
        decode_chain(encode_chain([make_log(StepRule(), mean_square=-1.0)]))


def test_mean_square() -> None:
    assert mean_square_of([[[1.0, 2.0]], [[3.0, 0.0]]]) == pytest.approx(3.5)
    assert mean_square_of([]) is None
