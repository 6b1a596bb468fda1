"""The core for apps: its replay gives the same bits as the Python side, and refuses broken logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_library import Core, CoreError, needs_cmake, run_mutations, write
from round_logs import FRONT_SIZE, RULES, THETA, N, chain_of, make_log, rules

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.replay_file import follow_logs
from edge_runtime.protocol.round_log import DeviceScalars, LogChain, encode_chain, pack_scalars
from edge_runtime.protocol.step_rule import Curvature, StepRule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), needs_cmake]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=rules,
    rounds=st.integers(1, 3),
    devices=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.9]),
    front_size=st.sampled_from([0, 1, FRONT_SIZE, N]),
    is_frozen=st.booleans(),
)
def test_a_replays_bits_are_pythons(
    core: Core,
    tmp_path: Path,
    rule: StepRule,
    rounds: int,
    devices: int,
    momentum: float,
    front_size: int,
    *,
    is_frozen: bool,
) -> None:
    if is_frozen:
        rule = msgspec.structs.replace(rule, front="frozen")
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
    """The adapter has several parts of 4 MiB, and the border between the blocks is inside a part."""
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
    """Return a name, the bytes, the error's code and a part of its message for each broken chain."""
    logs, _ = chain_of(StepRule(), 3, 2, 0.0, THETA)
    pooled, _ = chain_of(StepRule(seed_pool=5), 1, 2, 0.0, THETA)
    moved, _ = chain_of(StepRule(), 2, 1, 0.9, THETA)

    assert pooled[0].terms is not None
    n_back = len(pooled[0].terms.back) // 4

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
        *(
            (name, changed(rule=StepRule(**{name: value})), protocol, f"has {name}, which the core for apps")
            for name, value in (("keep_directions", 2), ("curvature", Curvature()), ("sign_momentum", 0.9))
        ),
        ("another rule", raw(rule={"variant": "sideways"}), protocol, "sideways"),
        ("an impossible rule", raw(rule={"leave_one_out": True, "back_perturbations": 1}), protocol, "leave_one_out"),
        ("a large scalar", changed(devices=[DeviceScalars("a", 1.0, huge)]), protocol, "scalar"),
        ("short scalars", changed(devices=[DeviceScalars("a", 1.0, first.scalars[:-4])]), protocol, "do not fit"),
        ("a large weight", raw(devices=[{"device": "a", "weight": 2.0, "scalars": b""}]), protocol, "weight"),
        ("terms in pieces", with_terms(back=b"123"), protocol, "broken list"),
        ("terms without end", with_terms(back=np.array([np.inf], "<f4").tobytes()), protocol, "not finite"),
        (
            "outside the pool",
            with_terms(back_pool=np.array([5], "<u4").tobytes(), back=b"\0" * 4),
            protocol,
            "outside its pool",
        ),
        ("no pool", with_terms(back_pool=None), protocol, f"{n_back} coefficients for 0 directions"),
        (
            "terms not shared",
            encode_chain([msgspec.structs.replace(pooled[0], rule=StepRule())]),
            protocol,
            "does not share",
        ),
        ("deep", b"\x91" * 100_000, protocol, "nests too deeply"),
        ("a promise", b"\xdd\xff\xff\xff\xff", protocol, "not readable"),
        ("not UTF-8", raw(job="job").replace(b"\xa3job\xa3job", b"\xa3job\xa3\xff\xfe\xfd"), protocol, "UTF-8"),
    ]


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


def test_damaged_logs_never_crash(mutate: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", THETA)
    for index, rule in enumerate([*RULES, StepRule(front_perturbations=2, variant="clean", seed_pool=3)]):
        logs, _ = chain_of(rule, 2, 2, 0.9, THETA)
        (tmp_path / "log").write_bytes(encode_chain(logs))
        counts = run_mutations(mutate, "log", tmp_path / "log", adapter, tmp_path / "out", index, 2000)
        assert counts["taken"] + counts["refused"] == 2000
        assert counts["wrong"] == 0
        assert counts["refused"] > 1000
