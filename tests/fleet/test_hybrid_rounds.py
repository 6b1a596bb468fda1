"""Rounds with both kinds of devices on the server: levels, merging, bad deltas."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import FORWARD_ONLY, Bench, ScriptedDevice, coordinator, good_report, run_with
from hybrid import (
    JOB,
    STLD,
    UploadingDevice,
    delta_report,
    device,
)

from edge_runtime.bundle import memory_need
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.protocol.presence import Capability
from edge_runtime.protocol.reports import PlanRefused
from server.errors import JobError
from server.fleet.exclusion import rejection
from server.job.fitted import FittedJob
from server.job.job import JobStld
from server.planning.levels import largest_level, takes_part
from server.planning.planner import Planner
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_levels_go_to_the_devices_that_can_hold_them(leveled: Bundle) -> None:
    manifest = leveled.manifest

    def chosen(capability: Capability, **changes: Any) -> int | None:
        found = device(capability, changes.pop("bundle", None), changes.pop("name", "pi"))
        found.refused_level = changes.pop("refused", None)
        job = msgspec.structs.replace(JOB, stld=msgspec.structs.replace(STLD, **changes))
        return largest_level(FittedJob.unchecked(job, manifest, leveled.sha256), found)

    needs = [memory_need.level_need(manifest, level) for level in manifest.levels]
    two = memory_need.bytes_for(needs[1], 4)
    can = Capability(kind="backprop", levels=None, bytes_free=two)
    assert chosen(can, micro_batch_size=4) == 2
    assert chosen(can) == (3 if memory_need.bytes_for(needs[2], 1) <= two else 2)  # fewer rows at once
    assert chosen(msgspec.structs.replace(can, bytes_free=None)) == 3
    assert chosen(msgspec.structs.replace(can, bytes_free=5)) is None
    assert chosen(can, levels=[1, 3], micro_batch_size=4) == 1
    assert chosen(can, refused=2) == 1
    assert chosen(FORWARD_ONLY) is None
    assert chosen(FORWARD_ONLY, name="deep") == 3  # named by the job
    assert chosen(can, device_levels={"pi": 0}) is None
    announced = msgspec.structs.replace(can, levels=[LevelNeed(1, 10, 1)])
    assert chosen(announced, bundle=leveled.sha256) == 1
    assert chosen(announced, bundle="0" * 64, micro_batch_size=4) == 2  # of another bundle
    assert takes_part(JOB, None)
    assert not takes_part(msgspec.structs.replace(JOB, stld=JobStld(forward_only=False)), None)


def test_forward_only_devices_wait_for_their_round(leveled: Bundle, tmp_path: Path) -> None:
    can = Capability(kind="backprop", levels=None, bytes_free=None)
    devices = {name: device(capability, None, name) for name, capability in (("able", can), ("weak", FORWARD_ONLY))}
    for found in devices.values():
        found.state = "online"
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:

        def planner(stld: JobStld | None) -> Planner:
            job = msgspec.structs.replace(JOB, stld=stld)
            return Planner(FittedJob.unchecked(job, leveled.manifest, leveled.sha256), ledger)

        later = planner(msgspec.structs.replace(STLD, forward_from=2))
        assert set(later.early(devices, 1)) == {"weak"}
        assert "begins with round 2" in later.early(devices, 1)["weak"]
        assert later.early(devices, 2) == {}
        assert planner(STLD).early(devices, 0) == {}
        assert planner(None).early(devices, 0) == {}


@pytest.mark.parametrize("merging", ["examples", "noise"])
def test_a_hybrid_round_is_a_file_and_a_forward_round_keeps_its_log(bench: Bench, merging: Any) -> None:
    backprop = UploadingDevice(bench, "deep")
    forward = ScriptedDevice(bench, "phone", lambda plan: [good_report(plan, "phone")])
    job = msgspec.structs.replace(JOB, min_devices=2, stld=msgspec.structs.replace(STLD, merging=merging))
    with coordinator(bench, job) as (made, ledger):
        assert run_with(made, [backprop, forward])
        (closed,) = queries.closed_rounds(ledger, "job")
        offers = {offer.device: offer for offer in queries.offers_of(ledger, "job")}
    assert [ack.outcome for ack in backprop.acks] == ["upload", "taken"]
    assert closed.log_sha256 is None
    assert closed.figures.merge is not None
    assert bench.blobs.path(closed.result_sha256) is not None
    assert (offers["deep"].level, offers["deep"].layers, offers["phone"].level) == (3, [0, 2], None)
    assert offers["deep"].bytes_up > len(backprop.sent[1])  # type: ignore[index]
    theta = np.frombuffer(bench.blobs.read(closed.result_sha256) or b"", np.float32)
    moved = theta - bench.bundle.initial_adapter()
    slices = layer_slices(bench.bundle.manifest)
    together = moved[slices.layers[0]]
    if merging == "noise":
        assert together == pytest.approx(1e-3, rel=1e-3)  # the only one that moved it with any certainty
    else:
        assert abs(together.mean() - 1e-3) > 1e-5  # both
    alone = moved[slices.layers[1]]
    assert alone.any()  # the scalars' alone
    assert not np.isclose(alone, 1e-3, rtol=1e-3).any()
    assert not list((bench.root / "deltas").glob("*"))  # nothing is left of the round


def _with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(16)


NESTED_HEADER = _with_header(b'{"w": ' + b"[" * 3000 + b"]" * 3000 + b"}")
HUGE_OFFSET = _with_header(b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1e400]}}')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0, 3]}, r"layers \[0, 3\] of 3"),
        ({"layers": [2, 0]}, r"layers \[2, 0\]"),
        ({"level": 1}, "trained at level 1, the plan says 3"),
        ({"adapter_sha256": "0" * 64}, "trained adapter"),
        ({"loss": float("nan")}, "not finite"),
        ({"delta": BlobRef("1" * 64, 10**9)}, "the delta would have"),
        ({"data": b"no delta at all"}, "cannot be read"),
        ({"data": NESTED_HEADER}, "nests too deeply"),
        ({"data": HUGE_OFFSET}, "bad entry for w"),
        ({"data": "layers"}, "does not hold the tensors"),
        ({"data": "nan"}, "not finite"),
        ({"data": "norm"}, "has norm"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_delta_is_refused_and_the_round_goes_on(bench: Bench, changes: dict[str, Any], message: str) -> None:
    parameters = bench.bundle.manifest.parameters
    value, layers = {"nan": (np.nan, [0, 2]), "norm": (9.0, [0, 2]), "layers": (1e-3, [1])}.get(
        str(changes.get("data")), (1e-3, [0, 2])
    )
    if isinstance(changes.get("data"), str):
        movement = np.full(total_size(parameters), value, np.float32)
        changes = {"data": encode_delta(movement, parameters, layers, 3)}
    bad = UploadingDevice(bench, "deep", **changes)
    forward = ScriptedDevice(bench, "phone", lambda plan: [good_report(plan, "phone")])
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2)) as (made, ledger):
        assert run_with(made, [bad, forward])
        (closed,) = queries.closed_rounds(ledger, "job")
        (detail,) = [offer.detail for offer in queries.offers_of(ledger, "job") if offer.device == "deep"]
    assert closed.log_sha256 is not None  # the round was forward-only after all
    assert bad.acks[-1].outcome == "invalid"
    assert re.search(message, bad.acks[-1].reason)
    assert detail == rejection(bad.acks[-1].reason)
    assert not list((bench.root / "deltas").glob("*"))


def test_answers_to_another_kind_of_plan_are_invalid(bench: Bench) -> None:
    confused = ScriptedDevice(bench, "deep", lambda plan: [good_report(plan, "deep")])
    forward = ScriptedDevice(bench, "phone", lambda plan: [good_report(plan, "phone")])
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2)) as (made, _):
        assert run_with(made, [confused, forward])
    assert [(ack.outcome, ack.reason) for ack in confused.acks] == [
        ("invalid", "the report answers another kind of plan")
    ]


def test_a_device_that_cannot_hold_its_level_gets_a_smaller_one(bench: Bench) -> None:
    levels: list[int] = []

    def answer(plan: Any) -> list[Any]:
        levels.append(plan.level)
        if plan.level == 1:
            return [delta_report(bench, plan, "auto")[0]]  # never uploaded: it only shows the level
        return [
            PlanRefused(
                job=plan.job, round=plan.round, attempt=plan.attempt, device="auto", code=9, message="3 bytes free"
            )
        ]

    auto = ScriptedDevice(bench, "auto", answer)
    can = Capability(kind="backprop", levels=None, bytes_free=None)
    birth = device(can, name="auto").birth
    assert birth is not None
    auto.birth = birth
    job = msgspec.structs.replace(JOB, max_attempts=1, deadline_s=2.0)
    with coordinator(bench, job) as (made, _), pytest.raises(JobError, match="fewer than 1 reports"):
        run_with(made, [auto])
    assert levels == [3, 2, 1]
