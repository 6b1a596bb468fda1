"""The moment beside the adapter: curvature and sign momentum, by hand, and to the same bits everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_logs import FRONT_SIZE, THETA, N, make_log

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.engines.quadratic import QuadraticEngine
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.moment import shape_of
from edge_runtime.forward_only.replay import Part, compact, replay, replay_part, round_terms
from edge_runtime.forward_only.replay_file import follow_logs
from edge_runtime.forward_only.round import RoundSettings, train_round
from edge_runtime.forward_only.slices import MomentFiles
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, FRONT, rademacher
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, decode_chain, encode_chain, pack_scalars
from edge_runtime.protocol.step_rule import Curvature, StepRule, check_rule
from edge_runtime.values import FloatVector

CURVED = StepRule(back_perturbations=2, normalize="none", curvature=Curvature(decay=0.5, floor=1.0))
SIGNED = StepRule(back_perturbations=2, normalize="none", sign_momentum=0.5)
GOLDEN = {
    "curvature": (
        "3f4ce2667cb334f26905f0541ec80548a1474b259759318f80b2eadbaf0b2e7d",
        "d128997fa6c661941efdd255840c3e23357de9fbcfc304bbca1c052c18da233e",
    ),
    "sign": (
        "f24bd8439813b98bcd350e849ce77a0b68a3c4012a2dab6984d516fdd28e7afd",
        "88a212503053025f5c00f4c4fccefe7268b706bb6d9bf2f56f55dbfd156d28da",
    ),
}
"""Hashes of the adapter and the moment after four rounds."""
KEEPERS = pytest.mark.parametrize("rule", [CURVED, SIGNED], ids=["curvature", "sign"])


class OneRow:
    """Rows of a task that has none: its engine does not look at the batch."""

    def __len__(self) -> int:
        return 1

    def batch(self, _indices: object) -> Any:
        return None


def z_of(seed: int, block: int) -> FloatVector:
    return rademacher(seed, block, 0, FRONT_SIZE if block == FRONT else N - FRONT_SIZE)


def chain_of(rule: StepRule, rounds: int, devices: int = 3) -> tuple[list[RoundLog], list[FloatVector], list[Any]]:
    """Logs of consecutive rounds from the job's first, and the adapters and moments before, between and after them."""
    logs: list[RoundLog] = []
    thetas, moments = [THETA], [np.zeros(N, np.float32)]
    for index in range(rounds):
        moment = moments[-1].copy()
        log = make_log(
            rule,
            devices,
            seed=index,
            round=index,
            base_sha256=adapter_sha256(thetas[-1]),
            base_moment_sha256=adapter_sha256(moments[-1]) if index else None,
        )
        thetas.append(replay(thetas[-1], log, None, moment))
        moments.append(moment)
        done = {"result_sha256": adapter_sha256(thetas[-1]), "result_moment_sha256": adapter_sha256(moment)}
        logs.append(compact(msgspec.structs.replace(log, **done)))
    return logs, thetas, moments


def hand_log(rule: StepRule, index: int, scalars: tuple[float, float]) -> tuple[RoundLog, FloatVector]:
    """One step of one device, and by hand in float64: −0.01 × the mean of g·z, the front's and the back's part."""
    devices = [DeviceScalars("pi", 1.0, pack_scalars(np.array(scalars, np.float32)))]
    log = make_log(rule, devices, steps=1, round=index)
    seeds = step_seeds(rule, 11, index, "pi", 0)
    front = -0.01 * (scalars[0] + scalars[1]) / 2 * z_of(seeds.front[0], FRONT)
    back = -0.01 / 2 * sum(g * z_of(seed, BACK).astype(np.float64) for g, seed in zip(scalars, seeds.back, strict=True))
    return log, np.concatenate([front, back])


def test_curvature_by_hand() -> None:
    """The second round's factors follow from the first round's squares, in units of what noise alone gives."""
    moment = np.zeros(N, np.float32)
    first, update = hand_log(CURVED, 0, (3.0, 1.0))
    theta = replay(THETA, first, None, moment)
    assert np.abs(theta - (THETA + update)).max() < 1e-6  # no factors yet
    noise = np.concatenate([np.full(FRONT_SIZE, 0.02**2), np.full(N - FRONT_SIZE, 0.015**2 + 0.005**2)])
    squares = update**2 / noise
    # Two directions agree or do not: (3 ± 1)² / (3² + 1²). A block with one direction has no curvature to see.
    assert {round(float(x), 5) for x in squares[FRONT_SIZE:]} == {1.6, 0.4}
    assert np.abs(squares[:FRONT_SIZE] - 1).max() < 1e-6
    assert np.abs(moment - 0.5 * squares).max() < 1e-6
    second, update = hand_log(CURVED, 1, (-2.0, 4.0))
    shape = np.sqrt(2 / (squares + 1))  # 1 − 0.5¹ takes the running mean's start from 0 out again
    after = replay(theta, second, None, moment)
    assert np.abs(after - (theta + shape * update)).max() < 1e-6
    noise = np.concatenate([np.full(FRONT_SIZE, 0.01**2), np.full(N - FRONT_SIZE, 0.01**2 + 0.02**2)])
    assert np.abs(moment - (0.25 * squares + 0.5 * update**2 / noise)).max() < 1e-6


def test_sign_momentum_by_hand() -> None:
    """Each parameter moves by the root of the sum of the squared coefficients, in the running mean's direction."""
    moment = np.zeros(N, np.float32)
    first, one = hand_log(SIGNED, 0, (3.0, 1.0))
    theta = replay(THETA, first, None, moment)
    length = np.concatenate([np.full(FRONT_SIZE, 0.02), np.full(N - FRONT_SIZE, math.hypot(0.015, 0.005))])
    assert np.abs(theta - (THETA + length * np.sign(one))).max() < 1e-6
    second, two = hand_log(SIGNED, 1, (-2.0, 5.0))
    mean = 0.25 * one + 0.5 * two
    length = np.concatenate([np.full(FRONT_SIZE, 0.015), np.full(N - FRONT_SIZE, math.hypot(0.01, 0.025))])
    after = replay(theta, second, None, moment)
    assert np.abs(after - (theta + length * np.sign(mean))).max() < 1e-6
    assert np.abs(moment - mean).max() < 1e-7


def test_a_round_that_moves_nothing_teaches_nothing() -> None:
    moment = np.full(N, 0.5, np.float32)
    still, _ = hand_log(CURVED, 1, (0.0, 0.0))
    assert replay(THETA, still, None, moment).tobytes() == THETA.tobytes()
    assert set(moment) == {np.float32(0.75)}  # half of what it was, half of 1: what noise alone gives


def test_the_mean_square_of_noise_is_one() -> None:
    """So a parameter without a signal keeps the factor 1, whatever the learning rate, the scalars and the round."""
    rule = msgspec.structs.replace(CURVED, curvature=Curvature(decay=0.9, floor=1.0), front_perturbations=4)
    _, _, moments = chain_of(rule, 8)
    shape = shape_of(rule, moments[-1], 8)
    assert shape is not None
    corrected = moments[-1] / (1 - 0.9**8)
    assert float(corrected.mean()) == pytest.approx(1, abs=0.15)
    assert float(np.square(shape).mean()) == pytest.approx(1, abs=0.15)
    assert float(shape.max()) < math.sqrt(2)


@KEEPERS
def test_golden_moment(rule: StepRule) -> None:
    """Pinned: x86 and ARM, both sides of every fleet in the field, must keep giving these hashes."""
    _, thetas, moments = chain_of(rule, 4)
    name = "curvature" if rule is CURVED else "sign"
    assert (adapter_sha256(thetas[-1]), adapter_sha256(moments[-1])) == GOLDEN[name]


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from([CURVED, SIGNED, msgspec.structs.replace(CURVED, shared_directions=True)]),
    start=st.integers(0, N),
    stop=st.integers(0, N),
)
def test_parts_and_logs_after_the_wire_give_the_same_bits(rule: StepRule, start: int, stop: int) -> None:
    start, stop = min(start, stop), max(start, stop)
    logs, thetas, moments = chain_of(rule, 2)
    log = decode_chain(encode_chain(logs))[1]
    out, moment = np.empty(stop - start, np.float32), moments[1][start:stop].copy()
    replay_part(Part(out, thetas[1][start:stop], None, moment, start, N), log, round_terms(log))
    assert out.tobytes() == thetas[2][start:stop].tobytes()
    assert moment.tobytes() == moments[2][start:stop].tobytes()


@pytest.mark.parametrize("copy", [True, False])
def test_one_devices_replay_is_its_local_model(copy: bool) -> None:
    """A device steps in the shaped space: what it measured and reached is what the server rebuilds, bit for bit."""
    rng = np.random.Generator(np.random.PCG64(5))
    factor = rng.normal(size=(N, N)) / 20

    def engine() -> QuadraticEngine:
        return QuadraticEngine(factor @ factor.T, rng.normal(size=N), FRONT_SIZE)

    logs, thetas, moments = chain_of(CURVED, 2)
    rule = msgspec.structs.replace(CURVED, normalize="rms", learning_rate=0.05)
    shape = shape_of(rule, moments[2], 2)
    settings_ = RoundSettings(11, 2, "pi", rule, 3, 1, 0.25, shape=shape)
    made = engine()
    rows: Any = OneRow()
    result = train_round(made, thetas[2], rows, settings_, copy=copy)
    assert result is not None
    log = make_log(
        rule,
        [DeviceScalars("pi", 1.0, pack_scalars(result.scalars.ravel()))],
        steps=3,
        round=2,
        mean_square=0.25,
        base_moment_sha256=logs[-1].result_moment_sha256,
    )
    after = replay(thetas[2], log, None, moments[2].copy())
    assert result.theta is None or result.theta.tobytes() == after.tobytes()
    assert (result.theta is None) == (not copy)
    # The first step's perturbations are shaped: the scalars are derivatives along the shaped directions.
    directions = step_seeds(rule, 11, 2, "pi", 0)
    plain = spzo_step(made, thetas[2], None, rule, directions, shape=None)  # type: ignore[arg-type]
    ones = spzo_step(made, thetas[2], None, rule, directions, shape=np.ones(N, np.float32))  # type: ignore[arg-type]
    assert np.abs(result.scalars[0] - plain.scalars).max() > 0.01 * np.abs(plain.scalars).max()
    assert np.abs(ones.scalars - plain.scalars).max() <= 1e-3 * np.abs(plain.scalars).max()


@KEEPERS
def test_a_chain_is_followed_from_any_round_with_its_moment(tmp_path: Path, rule: StepRule) -> None:
    logs, thetas, moments = chain_of(rule, 4)
    for first in range(4):
        path, files = tmp_path / "after", MomentFiles(moments[first] if first else None, tmp_path / "moment")
        follow_logs(path, thetas[first], adapter_sha256(thetas[first]), logs[first:], moment=files)
        assert path.read_bytes() == thetas[-1].tobytes()
        assert files.path.read_bytes() == moments[-1].tobytes()


def test_a_missing_or_another_moment_is_named(tmp_path: Path) -> None:
    logs, thetas, moments = chain_of(CURVED, 3)
    with pytest.raises(TrainingError, match="needs a moment"):
        replay(thetas[2], logs[2])
    start = adapter_sha256(thetas[2])
    with pytest.raises(TrainingError, match="ended on adapter"):
        follow_logs(tmp_path / "a", thetas[2], start, logs[2:], moment=MomentFiles(moments[1], tmp_path / "m"))
    lie = msgspec.structs.replace(logs[2], result_moment_sha256="3" * 64)
    with pytest.raises(TrainingError, match="ended on moment"):
        follow_logs(tmp_path / "a", thetas[2], start, [lie], moment=MomentFiles(moments[2], tmp_path / "m"))
    with pytest.raises(TrainingError, match="the plan names none"):
        shape_of(CURVED, None, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (StepRule(curvature=Curvature(), sign_momentum=0.9), "only one"),
        (StepRule(keep_directions=9), "only 8 scalars"),
        (StepRule(keep_directions=2, leave_one_out=True), "no leave_one_out"),
        (StepRule(keep_directions=2, variant="clean"), "nested"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(rule: StepRule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rule(rule)


def test_unused_switches_are_not_sent() -> None:
    """So that devices that have never heard of them read every plan and log as before."""
    assert not {"keep_directions", "curvature", "sign_momentum"} & set(msgspec.to_builtins(StepRule()))
    assert not [key for key in msgspec.to_builtins(make_log(StepRule())) if "moment_" in key]
    assert StepRule().switches == []
    assert CURVED.switches == ["curvature"]
    assert SIGNED.switches == ["sign_momentum"]
