"""The core for apps: its steps give the same bits as the Python side."""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_library import CallbackEngine, CBatch, Core, CoreError, CWork, c_batch, c_rule, needs_cmake, run_round
from round_logs import FRONT_SIZE, RULES, N, make_log, rules

from edge_runtime.bundle.folder import Bundle
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases
from edge_runtime.engines.quadratic import QuadraticEngine
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.forward_only.coefficients import Terms, apply_terms, step_coefficients
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, perturb_many_into
from edge_runtime.protocol.round_log import DeviceScalars, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.values import FloatVector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), needs_cmake]


class Bowl:
    """The engine of the self-test, as in core/self_test.cpp."""

    def __init__(self) -> None:
        self.front_workspace = np.zeros(FRONT_SIZE, np.float32)
        self.back_workspace = np.zeros(N - FRONT_SIZE, np.float32)

    def front_reads(self, _batch: object) -> list[slice]:
        return [slice(0, FRONT_SIZE)]

    def back_reads(self, _batch: object) -> list[slice]:
        return [slice(0, N - FRONT_SIZE)]

    def front(self, _batch: object) -> FloatVector:
        return self.front_workspace.copy()

    def back(self, boundary: FloatVector, _batch: object) -> float:
        loss = 0.0
        for k, value in enumerate([*boundary.tolist(), *self.back_workspace.tolist()]):
            distance = value - (k % 5) / 8
            loss += (1 + k % 3) * distance * distance / 2
        return loss


START = (np.arange(N) % 17).astype(np.float32) / np.float32(16) - np.float32(0.5)


def python_round(
    engine: Any, theta: FloatVector, rule: StepRule, device: str, batches: list[Any], mean_square: float | None = None
) -> tuple[FloatVector, FloatVector, list[float]]:
    terms, scalars, losses = Terms(), [], []
    for step, batch in enumerate(batches):
        seeds = step_seeds(rule, 11, 3, device, step)
        result = spzo_step(engine, theta, batch, rule, seeds, terms)
        coefficients, mean_square = step_coefficients(result.scalars.tolist(), rule, mean_square)
        terms.add(seeds, coefficients)
        scalars.append(result.scalars)
        losses.append(result.loss)
    local = np.empty_like(theta)
    apply_terms(local, theta, engine.front_workspace.size, terms)
    return np.concatenate(scalars), local, losses


def test_the_self_tests_pins_are_pythons(command: Callable[..., tuple[int, dict[str, Any]]], core: Core) -> None:
    code, found = command("self-test")
    assert code == 0
    core.call("self_test")
    assert found["sha256"] == hashlib.sha256(b"abc").hexdigest()
    clean = np.arange(5000, dtype=np.float32) / np.float32(4096) - np.float32(0.5)
    out = np.empty_like(clean)
    perturb_many_into(out, clean, [3, 2**64 - 1, 7], BACK, [0.1, -1e-3, 1.0], 77)
    assert found["perturbation"] == hashlib.sha256(out.tobytes()).hexdigest()
    rounds, before, now = hashlib.sha256(), START, START
    for rule in RULES:
        scalars, local, _ = python_round(Bowl(), START, rule, "self-test", [None, None])
        rounds.update(scalars.tobytes() + local.tobytes())
        devices = []
        for name, weight, factor in (("one", 0.3, 5), ("two", 0.7, 3)):
            index = np.arange(2 * rule.scalars_per_step)
            devices.append(
                DeviceScalars(name, weight, pack_scalars((index * factor % 11).astype(np.float32) / 4 - np.float32(1)))
            )
        log = make_log(rule, devices=devices, mean_square=0.25, momentum=0.9, previous_sha256="0" * 64)
        before, now = now, replay(now, log, before)
    assert found["rounds"] == rounds.hexdigest()
    assert found["replay"] == hashlib.sha256(now.tobytes()).hexdigest()


@settings(deadline=None, max_examples=60)
@given(rule=rules, steps=st.integers(1, 3), mean_square=st.none() | st.floats(1e-3, 1e3), frozen=st.booleans())
def test_a_rounds_bits_are_pythons(
    core: Core, rule: StepRule, steps: int, mean_square: float | None, frozen: bool
) -> None:
    rng = np.random.Generator(np.random.PCG64(steps))
    factor = rng.normal(size=(40, 40)) / 10
    optimum, theta = rng.normal(size=40), rng.normal(size=40).astype(np.float32)

    def bowl() -> QuadraticEngine:
        return QuadraticEngine(factor @ factor.T, optimum, 0 if frozen else 15)

    expected = python_round(bowl(), theta, rule, "küche-1", [None] * steps, mean_square)
    engine = CallbackEngine(core, bowl())
    before = theta.tobytes()
    work = CWork(11, 3, "küche-1".encode(), c_rule(rule), -1.0 if mean_square is None else mean_square, 0.0, 0.0)
    found = run_round(core, engine.handle, theta, work, [CBatch()] * steps)
    engine.close()
    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1].tobytes() == expected[1].tobytes()
    assert found[2] == expected[2]
    assert theta.tobytes() == before
    assert not engine.boundaries


@pytest.mark.parametrize("task", ["classify-head", "causal-lm"])
def test_a_step_on_real_graphs_gives_pythons_bits(core: Core, tiny_export: Callable[..., Bundle], task: str) -> None:
    """The callbacks run ONNX Runtime: batches arrive unchanged, and the same losses give the same scalars."""
    bundle = tiny_export("llama" if task == "causal-lm" else "bert", task=task)
    cases = [case.batch for case in golden_cases(bundle)]
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    rule = StepRule(front_perturbations=2, back_perturbations=2)
    expected = python_round(Engines(threads=1).make_engine(bundle, 1), theta, rule, "phone", cases)
    batches = [c_batch(case) for case in cases]
    seen = {batch.input_ids: case for batch, case in zip(batches, cases, strict=True)}

    def batch_of(batch: CBatch) -> Any:
        case = seen[batch.input_ids]
        assert bytes(batch) == bytes(c_batch(case))
        return case

    engine = CallbackEngine(core, Engines(threads=1).make_engine(bundle, 1), batch_of)
    found = run_round(core, engine.handle, theta, CWork(11, 3, b"phone", c_rule(rule), -1.0, 0.0, 0.0), batches)
    engine.close()
    assert np.abs(expected[0]).max() > 0
    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1].tobytes() == expected[1].tobytes()


@settings(deadline=None)
@given(losses=st.lists(st.floats(-1e15, 1e15), min_size=2, max_size=12))
def test_the_reported_loss_is_an_exact_sum(core: Core, losses: list[float]) -> None:
    remaining = iter(losses * 2)

    class Given:
        front_workspace = np.zeros(0, np.float32)
        back_workspace = np.zeros(1, np.float32)

        def front(self, _batch: object) -> None:
            return None

        def back(self, _boundary: object, _batch: object) -> float:
            return next(remaining)

    engine = CallbackEngine(core, Given())
    rule = StepRule(back_perturbations=len(losses) // 2)
    work = CWork(0, 0, b"a", c_rule(rule), -1.0, 0.0, 0.0)
    found = run_round(core, engine.handle, np.zeros(1, np.float32), work, [CBatch()])
    engine.close()
    used = losses[: 2 * (len(losses) // 2)]
    assert found[2] == [math.fsum(used) / len(used)]


def test_private_rounds_are_clipped_and_noised(core: Core) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    theta = rng.normal(size=40).astype(np.float32)
    rule = StepRule(back_perturbations=200, normalize="none")

    def scalars(clip: float, noise: float) -> FloatVector:
        engine = CallbackEngine(core, QuadraticEngine(np.eye(40), np.zeros(40), 15))
        work = CWork(1, 2, b"a", c_rule(rule), -1.0, clip, noise)
        found = run_round(core, engine.handle, theta, work, [CBatch()])[0]
        engine.close()
        return found

    plain, clipped, noised = scalars(0, 0), scalars(1.5, 0), scalars(1.5, 2)
    assert np.array_equal(clipped, np.clip(plain, -1.5, 1.5))
    assert not np.array_equal(plain, clipped)
    noise = noised - clipped
    assert 2 < noise.std() < 4
    assert np.abs(noise.mean()) < 1
    assert not np.array_equal(noised, scalars(1.5, 2))


@settings(deadline=None)
@given(rule=rules)
def test_a_steps_scalars_are_counted_as_in_python(core: Core, rule: StepRule) -> None:
    assert core.library.covey_rule_scalars_per_step(ctypes.byref(c_rule(rule))) == rule.scalars_per_step


def test_a_rule_that_is_refused_has_no_scalars(core: Core) -> None:
    count = core.library.covey_rule_scalars_per_step
    assert count(None) == 0
    for name, value in (("variant", 2), ("front_perturbations", 0), ("back_perturbations", 257), ("eps", math.nan)):
        rule = c_rule(StepRule())
        assert count(ctypes.byref(rule)) == StepRule().scalars_per_step
        setattr(rule, name, value)
        assert count(ctypes.byref(rule)) == 0


def test_invalid_values_are_refused(core: Core) -> None:
    theta = np.zeros(40, np.float32)
    engine = CallbackEngine(core, QuadraticEngine(np.eye(40), np.zeros(40), 15))

    def work(rule: StepRule | None = None, **changes: Any) -> CWork:
        values = {"job_seed": 0, "round": 0, "device": b"a", "rule": c_rule(rule or StepRule()), "mean_square": -1.0}
        return CWork(**(values | changes))

    for bad, message in (
        (work(StepRule(leave_one_out=True, back_perturbations=1)), "leave_one_out"),
        (work(StepRule(normalize="std", back_perturbations=1)), "std"),
        (work(msgspec.structs.replace(StepRule(), eps=0.0)), "eps"),
        (work(msgspec.structs.replace(StepRule(), learning_rate=math.nan)), "learning_rate"),
        (work(msgspec.structs.replace(StepRule(), front_perturbations=257)), "perturbations"),
        (work(device=b""), "name"),
        (work(mean_square=math.nan), "mean_square"),
        (work(clip=-1.0), "clip"),
    ):
        with pytest.raises(CoreError, match=message) as caught:
            core.open("round_open", engine.handle, ctypes.c_void_p(theta.ctypes.data), ctypes.byref(bad))
        assert caught.value.code == ConfigError.exit_code
        assert caught.value.hint
    engine.fails_with = 7
    with pytest.raises(CoreError, match="front failed with 7") as caught:
        run_round(core, engine.handle, theta, work(), [CBatch()])
    assert caught.value.code == TrainingError.exit_code
    engine.close()
    engine = CallbackEngine(core, QuadraticEngine(np.full((40, 40), np.inf), np.zeros(40), 15))
    with pytest.raises(CoreError, match="not finite"):
        run_round(core, engine.handle, theta + 1, work(), [CBatch()])
    engine.close()
