"""The core for apps gives the bits of the Python side, and refuses what it refuses."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_library import (
    ROOT,
    CallbackEngine,
    CBatch,
    Core,
    CoreError,
    CWork,
    build,
    c_batch,
    c_rule,
    needs_cmake,
    run_round,
)

from edge_runtime.adapter_file import follow_logs
from edge_runtime.bundle import Bundle
from edge_runtime.engine_onnxruntime import OnnxEngine
from edge_runtime.engine_quadratic import QuadraticEngine
from edge_runtime.errors import BundleError, ConfigError, ProtocolError, TrainingError
from edge_runtime.golden import golden_adapter, golden_cases
from edge_runtime.layout import adapter_sha256
from edge_runtime.manifest import MANIFEST_FILE
from edge_runtime.perturbation import BACK, FloatVector, perturb_many_into
from edge_runtime.replay import compact, replay
from edge_runtime.round_log import DeviceScalars, LogChain, RoundLog, encode_chain, pack_scalars
from edge_runtime.rule import StepRule, step_seeds
from edge_runtime.spzo import spzo_step
from edge_runtime.update import Terms, apply_terms, step_coefficients

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), needs_cmake]

N, FRONT_SIZE = 300, 130
CHUNK_FIXTURE = [HealthCheck.function_scoped_fixture]

rules = st.builds(
    StepRule,
    variant=st.sampled_from(["nested", "clean"]),
    front_perturbations=st.integers(1, 3),
    back_perturbations=st.integers(2, 5),
    eps=st.floats(1e-4, 0.5),
    learning_rate=st.floats(1e-4, 1.0),
    leave_one_out=st.booleans(),
    difference=st.sampled_from(["central", "forward"]),
    normalize=st.sampled_from(["none", "rms", "std"]),
    shared_directions=st.booleans(),
    seed_pool=st.none() | st.integers(1, 7),
).filter(lambda rule: not (rule.leave_one_out and rule.variant == "clean"))


@pytest.fixture(scope="session")
def core_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("core"), "-DBUILD_SHARED_LIBS=ON")


@pytest.fixture(scope="session")
def core(core_build: Path) -> Core:
    return Core(core_build / "libcovey.so")


@pytest.fixture(scope="session")
def command(core_build: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        result = subprocess.run(
            [str(core_build / "covey-core"), *map(str, arguments), "--format", "json"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        return result.returncode, json.loads(result.stdout)

    return run


# ---- The pinned results, computed again by Python ----


class Bowl:
    """The self-test's engine: see self_test.cpp."""

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
RULES = [
    StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True),
    StepRule(variant="clean", difference="forward", normalize="std"),
    StepRule(front_perturbations=3, back_perturbations=1, shared_directions=True, normalize="none", learning_rate=1e-4),
    StepRule(seed_pool=5),
]


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


# ---- Steps ----


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
    """ONNX Runtime behind the callbacks: batches arrive whole, and the same losses give the same scalars."""
    bundle = tiny_export("llama" if task == "causal-lm" else "bert", task=task)
    cases = [case.batch for case in golden_cases(bundle)]
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    rule = StepRule(front_perturbations=2, back_perturbations=2)
    expected = python_round(OnnxEngine(bundle, 1, threads=1), theta, rule, "phone", cases)
    batches = [c_batch(case) for case in cases]
    seen = {batch.input_ids: case for batch, case in zip(batches, cases, strict=True)}

    def batch_of(batch: CBatch) -> Any:
        case = seen[batch.input_ids]
        assert bytes(batch) == bytes(c_batch(case))
        return case

    engine = CallbackEngine(core, OnnxEngine(bundle, 1, threads=1), batch_of)
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


def test_what_cannot_be_is_refused(core: Core) -> None:
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


# ---- Replay ----


def make_log(
    rule: StepRule, devices: list[DeviceScalars] | int = 2, steps: int = 2, seed: int = 0, **changes: Any
) -> RoundLog:
    rng = np.random.Generator(np.random.PCG64(seed))
    if isinstance(devices, int):
        shape = (steps, rule.scalars_per_step)
        devices = [
            DeviceScalars(f"device-{index}", 1 / devices, pack_scalars(rng.normal(size=shape).astype(np.float32)))
            for index in range(devices)
        ]
    log = RoundLog(
        job="job", job_seed=11, round=3, rule=rule, front_size=FRONT_SIZE, steps=steps, mean_square=None,
        momentum=0.0, previous_sha256=None, base_sha256="0" * 64, result_sha256="0" * 64, devices=devices, terms=None,
    )  # fmt: skip
    return msgspec.structs.replace(log, **changes)


def chain_of(
    rule: StepRule, rounds: int, devices: int, momentum: float, theta: FloatVector, front_size: int = FRONT_SIZE
) -> tuple[list[RoundLog], list[FloatVector]]:
    logs, thetas = [], [theta]
    for index in range(rounds):
        before = adapter_sha256(thetas[-2]) if momentum and index else None
        log = make_log(
            rule, devices, seed=index, round=index, momentum=momentum, previous_sha256=before, front_size=front_size,
            base_sha256=adapter_sha256(thetas[-1]), mean_square=0.5 if index else None,
        )  # fmt: skip
        thetas.append(replay(thetas[-1], log, thetas[-2] if before else None))
        logs.append(compact(msgspec.structs.replace(log, result_sha256=adapter_sha256(thetas[-1]))))
    return logs, thetas


THETA = np.linspace(-1, 1, N, dtype=np.float32)


@settings(deadline=None, max_examples=60, suppress_health_check=CHUNK_FIXTURE)
@given(
    rule=rules,
    rounds=st.integers(1, 3),
    devices=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.9]),
    front_size=st.sampled_from([0, 1, FRONT_SIZE, N]),
)
def test_a_replays_bits_are_pythons(
    core: Core, tmp_path: Path, rule: StepRule, rounds: int, devices: int, momentum: float, front_size: int
) -> None:
    logs, thetas = chain_of(rule, rounds, devices, momentum, THETA, front_size)
    first = rounds - 1 if momentum else 0
    adapter, previous, out, before = (tmp_path / name for name in ("adapter", "previous", "out", "before"))
    adapter.write_bytes(thetas[first].tobytes())
    previous.write_bytes(thetas[max(first - 1, 0)].tobytes())
    needs_previous = logs[first].previous_sha256 is not None
    found = core.replay(encode_chain(logs[first:]), adapter, out, previous if needs_previous else None, before)
    assert found == adapter_sha256(thetas[-1])
    assert out.read_bytes() == thetas[-1].tobytes()
    assert before.read_bytes() == thetas[-2].tobytes()


@pytest.mark.parametrize("rule", [StepRule(back_perturbations=3), StepRule(variant="clean", normalize="none")])
def test_devices_with_another_p2_give_the_same_bits(core: Core, tmp_path: Path, rule: StepRule) -> None:
    other = make_log(msgspec.structs.replace(rule, back_perturbations=5), 1, seed=1).devices[0].scalars
    devices = [*make_log(rule, 1).devices, DeviceScalars("other", 0.5, other, 5)]
    log = make_log(rule, devices=devices, base_sha256=adapter_sha256(THETA))
    wanted = replay(THETA, log)
    (tmp_path / "adapter").write_bytes(THETA.tobytes())
    chain = encode_chain([msgspec.structs.replace(log, result_sha256=adapter_sha256(wanted))])
    assert core.replay(chain, tmp_path / "adapter", tmp_path / "out") == adapter_sha256(wanted)
    assert (tmp_path / "out").read_bytes() == wanted.tobytes()


def test_parts_and_the_command_give_the_same_bits(
    command: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    """More than one part of 4 MiB, with the border of the blocks inside one."""
    theta = np.linspace(-1, 1, (1 << 21) + 77, dtype=np.float32)
    logs, thetas = chain_of(StepRule(), 2, 1, 0.5, theta, front_size=(1 << 20) + 300)
    (tmp_path / "log").write_bytes(encode_chain(logs))
    (tmp_path / "adapter").write_bytes(theta.tobytes())
    code, found = command(
        "replay", "--log", tmp_path / "log", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out"
    )
    assert (code, found["adapter_sha256"], found["rounds"]) == (0, adapter_sha256(thetas[-1]), 2)
    assert (tmp_path / "out").read_bytes() == thetas[-1].tobytes()
    follow_logs(tmp_path / "python", theta, adapter_sha256(theta), logs)
    assert (tmp_path / "python").read_bytes() == (tmp_path / "out").read_bytes()


def broken_chains() -> list[tuple[str, bytes, int, str]]:
    """What a chain is, its bytes, the error's code and a part of its message."""
    logs, _ = chain_of(StepRule(), 3, 2, 0.0, THETA)
    pooled, _ = chain_of(StepRule(seed_pool=5), 1, 2, 0.0, THETA)
    moved, _ = chain_of(StepRule(), 2, 1, 0.9, THETA)

    def with_terms(**changes: Any) -> bytes:
        terms = msgspec.structs.replace(pooled[0].terms, **changes)
        return encode_chain([msgspec.structs.replace(pooled[0], terms=terms)])

    def changed(**changes: Any) -> bytes:
        return encode_chain([msgspec.structs.replace(logs[0], **changes)])

    def raw(**changes: Any) -> bytes:
        return msgspec.msgpack.encode(
            {"type": "log-chain", "v": 2, "rounds": [msgspec.to_builtins(logs[0], builtin_types=(bytes,)) | changes]}
        )

    first = logs[0].devices[0]
    protocol, training = ProtocolError.exit_code, TrainingError.exit_code
    huge = pack_scalars(np.full(16, 2e6, np.float32))
    return [
        ("a gap", encode_chain([logs[0], logs[2]]), training, "gap: round 2"),
        ("a lie", changed(result_sha256="2" * 64), training, "ended on"),
        ("another base", encode_chain(logs[1:]), training, "gap: round 1"),
        ("momentum alone", changed(previous_sha256="1" * 64, momentum=0.5), training, "momentum"),
        ("momentum, no adapter", encode_chain(moved[1:]), training, "gap"),
        ("another version", msgspec.msgpack.encode(LogChain(3, logs)), protocol, "version 3"),
        ("empty", encode_chain([]), protocol, "empty"),
        ("nothing", b"", protocol, "not readable"),
        ("cut", encode_chain(logs)[:-5], protocol, "not readable"),
        ("more after it", encode_chain(logs) + b"\0", protocol, "not readable"),
        ("an unknown field", raw(surprise=1), protocol, "unknown field surprise"),
        ("a wrong type", raw(round="3"), protocol, "round is not"),
        ("a negative number", raw(front_size=-1), protocol, "front_size is not"),
        ("no steps", raw(steps=0), protocol, "steps is out of bounds"),
        ("no mean square", raw(mean_square=-1.0), protocol, "mean_square"),
        ("too much momentum", raw(momentum=1.0), protocol, "momentum"),
        ("no hash", raw(base_sha256="X" * 64), protocol, "base_sha256"),
        ("many steps", changed(steps=2**63), protocol, "do not fit"),
        ("too large a front", changed(front_size=N + 1), protocol, "front block"),
        ("another rule", raw(rule={"variant": "sideways"}), protocol, "sideways"),
        ("an impossible rule", raw(rule={"leave_one_out": True, "back_perturbations": 1}), protocol, "leave_one_out"),
        ("a large scalar", changed(devices=[DeviceScalars("a", 1.0, huge)]), protocol, "scalar"),
        ("short scalars", changed(devices=[DeviceScalars("a", 1.0, first.scalars[:-4])]), protocol, "do not fit"),
        ("a large weight", raw(devices=[{"device": "a", "weight": 2.0, "scalars": b""}]), protocol, "weight"),
        ("terms in pieces", with_terms(back=b"123"), protocol, "broken list"),
        ("terms without end", with_terms(back=np.array([np.inf], "<f4").tobytes()), protocol, "not finite"),
        (
            "outside the pool",
            with_terms(back_pool=np.array([5], "<u4").tobytes(), back=b"\0" * 4), protocol, "outside its pool",
        ),
        ("no pool", with_terms(back_pool=None), protocol, "more coefficients"),
        (
            "terms not shared",
            encode_chain([msgspec.structs.replace(pooled[0], rule=StepRule())]), protocol, "does not share",
        ),
        ("deep", b"\x91" * 100_000, protocol, "nests too deeply"),
        ("a promise", b"\xdd\xff\xff\xff\xff", protocol, "not readable"),
        ("not UTF-8", raw(job="job").replace(b"\xa3job\xa3job", b"\xa3job\xa3\xff\xfe\xfd"), protocol, "UTF-8"),
    ]  # fmt: skip


@pytest.mark.parametrize(("what", "chain", "code", "message"), broken_chains(), ids=[c[0] for c in broken_chains()])
def test_a_broken_chain_is_refused(
    core: Core, tmp_path: Path, what: str, chain: bytes, code: int, message: str
) -> None:
    adapter = tmp_path / "adapter"
    adapter.write_bytes(THETA.tobytes())
    with pytest.raises(CoreError, match=message) as caught:
        core.replay(chain, adapter, tmp_path / "out", None, tmp_path / "before")
    assert caught.value.code == code
    assert caught.value.hint
    assert sorted(tmp_path.iterdir()) == [adapter]


def test_adapters_that_do_not_fit_are_refused(core: Core, tmp_path: Path) -> None:
    logs, thetas = chain_of(StepRule(), 2, 1, 0.9, THETA)
    adapter, previous = tmp_path / "adapter", tmp_path / "previous"
    adapter.write_bytes(thetas[1].tobytes())
    chain = encode_chain(logs[1:])
    for data, message in ((thetas[0].tobytes()[:-4], "another length"), (thetas[1].tobytes(), "not the one")):
        previous.write_bytes(data)
        with pytest.raises(CoreError, match=message):
            core.replay(chain, adapter, tmp_path / "out", previous)
    with pytest.raises(CoreError, match="No such file"):
        core.replay(chain, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CoreError, match="cannot write"):
        core.replay(encode_chain(logs[:1]), write(tmp_path / "first", thetas[0]), tmp_path / "no" / "folder")
    adapter.write_bytes(b"123")
    with pytest.raises(CoreError, match="not an adapter"):
        core.replay(chain, adapter, tmp_path / "out")
    infinite = np.full(N, np.inf, np.float32)
    log = msgspec.structs.replace(logs[0], base_sha256=adapter_sha256(infinite))
    with pytest.raises(CoreError, match="not finite"):
        core.replay(encode_chain([log]), write(tmp_path / "inf", infinite), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write(path: Path, theta: FloatVector) -> Path:
    path.write_bytes(theta.tobytes())
    return path


# ---- Bundles ----


@pytest.mark.parametrize("train", ["B", "full"])
def test_a_bundle_is_opened_and_checked(
    core: Core, command: Callable[..., tuple[int, dict[str, Any]]], tiny_export: Callable[..., Bundle], train: str
) -> None:
    bundle = tiny_export("bert", train=train)
    handle = core.open("bundle_open", str(bundle.path).encode())
    core.call("bundle_verify", handle)
    assert core.library.covey_bundle_sha256(handle).decode() == bundle.sha256
    initial = bundle.initial_adapter()
    assert core.library.covey_bundle_parameters(handle) == initial.size
    adapter = core.open("adapter_open", handle, None)
    assert core.library.covey_adapter_sha256(adapter).decode() == bundle.initial_sha256
    data = ctypes.string_at(core.library.covey_adapter_data(adapter), 4 * initial.size)
    assert data == initial.tobytes()
    with pytest.raises(CoreError, match="built without ExecuTorch") as caught:
        core.open("engine_executorch", handle, ctypes.c_int64(1), 0)
    assert caught.value.code == ConfigError.exit_code
    core.library.covey_adapter_close(adapter)
    core.library.covey_bundle_close(handle)
    code, found = command("verify", "--bundle", bundle.path)
    assert (code, found["bundle_sha256"], found["files"]) == (0, bundle.sha256, len(bundle.manifest.files))


def open_and_verify(core: Core, path: Path) -> None:
    handle = core.open("bundle_open", str(path).encode())
    try:
        core.call("bundle_verify", handle)
        core.library.covey_adapter_close(core.open("adapter_open", handle, None))
    finally:
        core.library.covey_bundle_close(handle)


def test_every_file_is_guarded(core: Core, bundle_copy: Bundle) -> None:
    for entry in bundle_copy.manifest.files:
        path = bundle_copy.file(entry.path)
        original = path.read_bytes()
        path.write_bytes(bytes([original[0] ^ 1]) + original[1:])
        with pytest.raises(CoreError, match=f"{entry.path} was altered") as caught:
            open_and_verify(core, bundle_copy.path)
        assert caught.value.code == BundleError.exit_code
        path.unlink()
        with pytest.raises(CoreError, match=f"{entry.path} is missing"):
            open_and_verify(core, bundle_copy.path)
        path.symlink_to("/dev/zero")
        with pytest.raises(CoreError, match=f"{entry.path} is missing"):
            open_and_verify(core, bundle_copy.path)
        path.unlink()
        path.write_bytes(original)
    open_and_verify(core, bundle_copy.path)
    bundle_copy.file("graphs/extra.onnx").write_bytes(b"x")
    with pytest.raises(CoreError, match=r"graphs/extra.onnx is in the bundle's folder but not in its manifest"):
        open_and_verify(core, bundle_copy.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1, this Covey reads version 2"),
        ({"splits": []}, "no split"),
        ({"weights_file": "elsewhere"}, "no file elsewhere"),
        ({"parameters": []}, "layout is empty"),
        ({"parameters": [{"name": "a", "shape": [2, 0], "layer": 0, "offset": 0}]}, "bad shape"),
        ({"parameters": [{"name": "a", "shape": [2**62, 2**62], "layer": 0, "offset": 0}]}, "bad shape"),
        ({"parameters": [{"name": "a", "shape": [4], "layer": 0, "offset": 4}]}, "does not begin"),
        ({"parameters": [{"name": "a", "shape": [2**39], "layer": 0, "offset": 0}], "graphs": []}, "does not hold a"),
        ({"task": 3}, "task: it is not an object"),
        ({"golden": None}, "golden is missing"),
        ({"files": [{"path": "../escape", "sha256": "0" * 64, "size_bytes": 1}]}, "unsafe path"),
        ({"files": [{"path": "a//b", "sha256": "0" * 64, "size_bytes": 1}]}, "unsafe path"),
        ({"files": [{"path": "a", "sha256": "0", "size_bytes": 1}]}, "not a SHA-256"),
    ],
    ids=str,
)
def test_a_broken_manifest_is_refused(core: Core, bundle_copy: Bundle, changes: dict[str, Any], message: str) -> None:
    path = bundle_copy.file(MANIFEST_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CoreError, match=message) as caught:
        handle = core.open("bundle_open", str(bundle_copy.path).encode())
        core.open("adapter_open", handle, None)
    assert caught.value.code == BundleError.exit_code


def test_folders_and_files_that_are_no_bundle(core: Core, bundle_copy: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="no such folder"):
        open_and_verify(core, tmp_path / "nowhere")
    weights = bundle_copy.file(bundle_copy.manifest.adapter_file)
    original = weights.read_bytes()
    handle = core.open("bundle_open", str(bundle_copy.path).encode())
    for spoiled in (b"", b"\0" * 4, b"\xff" * 64, original[: len(original) // 2], original[:8] + b"x" + original[9:]):
        weights.write_bytes(spoiled)
        with pytest.raises(CoreError) as caught:
            core.open("adapter_open", handle, None)
        assert caught.value.code == BundleError.exit_code
    size = core.library.covey_bundle_parameters(handle)
    for theta, message in ((np.zeros(size - 1, np.float32), "bytes"), (np.full(size, np.nan, np.float32), "finite")):
        with pytest.raises(CoreError, match=message):
            core.open("adapter_open", handle, str(write(tmp_path / "adapter", theta)).encode())
    bundle_copy.file(MANIFEST_FILE).unlink()
    with pytest.raises(CoreError, match="interrupted export"):
        open_and_verify(core, bundle_copy.path)


# ---- The command ----


def test_the_command_says_what_is_wrong(core_build: Path, tiny_bundle: Bundle) -> None:
    program = str(core_build / "covey-core")
    for arguments, code, message in (
        ([], 2, "no command"),
        (["dance"], 2, "unknown command dance"),
        (["verify"], 2, "--bundle is missing"),
        (["verify", "--bundle", "nowhere", "--twice", "1"], 2, "unknown option --twice"),
        (["verify", "--bundle"], 2, "expected --option VALUE"),
        (["step", "--bundle", str(tiny_bundle.path), "--eps", "small"], 2, "--eps is not a number"),
        (["step", "--bundle", str(tiny_bundle.path), "--variant", "odd"], 2, "--variant cannot be odd"),
        (["verify", "--bundle", "nowhere"], 5, "no such folder"),
        (["replay", "--log", "nowhere", "--adapter", "a", "--out", "b"], 6, "cannot read nowhere"),
        (["step", "--bundle", str(tiny_bundle.path), "--split", "1"], 3, "built without ExecuTorch"),
    ):
        result = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in result.stderr
        assert "what to do: " in result.stderr
        result = subprocess.run([program, *arguments, "--format", "json"], check=False, capture_output=True, text=True)
        if arguments and arguments[-1] != "--bundle":
            assert json.loads(result.stdout)["exit_code"] == code
    help_text = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    assert all(name in help_text for name in ("self-test", "verify", "replay", "step"))


def test_the_library_exports_its_interface_and_nothing_else(core_build: Path) -> None:
    """What an app links must not collide with the app's own SHA-256 or JSON."""
    names = subprocess.run(
        ["nm", "-D", "--defined-only", str(core_build / "libcovey.so")], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    found = {line.split()[-1] for line in names if " T " in line}
    header = (ROOT / "edge_runtime" / "native" / "covey.h").read_text()
    assert found
    assert all(f"{name}(" in header for name in found)


# ---- Damage ----


@pytest.fixture(scope="session")
def mutate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(
        tmp_path_factory.mktemp("sanitized"), "-DCOVEY_SANITIZE=ON", "-DCOVEY_TESTS=ON",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        target="covey-mutate",
    )  # fmt: skip
    return folder / "covey-mutate"


def run_mutations(program: Path, *arguments: object) -> dict[str, int]:
    result = subprocess.run(
        [str(program), *map(str, arguments)], check=False, capture_output=True, text=True,
        env=os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    counts: dict[str, int] = json.loads(result.stdout)
    return counts


def test_damaged_logs_never_crash(mutate: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", THETA)
    for index, rule in enumerate([*RULES, StepRule(front_perturbations=2, variant="clean", seed_pool=3)]):
        logs, _ = chain_of(rule, 2, 2, 0.9, THETA)
        (tmp_path / "log").write_bytes(encode_chain(logs))
        counts = run_mutations(mutate, "log", tmp_path / "log", adapter, tmp_path / "out", index, 2000)
        assert counts["taken"] + counts["refused"] == 2000
        assert counts["wrong"] == 0
        assert counts["refused"] > 1000


@pytest.mark.parametrize("name", ["manifest.json", "adapter/adapter_model.safetensors", "golden.safetensors"])
def test_damaged_bundles_never_crash(mutate: Path, bundle_copy: Bundle, name: str) -> None:
    counts = run_mutations(mutate, "bundle", bundle_copy.path, name, 0, 400)
    assert counts["taken"] + counts["refused"] == 400
    assert counts["refused"] > 30


@pytest.fixture(autouse=True)
def _no_files_left() -> Iterator[None]:
    yield
    assert not list(ROOT.glob("*.part"))
