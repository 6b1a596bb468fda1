"""A contribution that is rejected leaves no trace: the round's hash is that of a round without the device.

Every kind of damage, in rounds of forward-only devices, of backprop devices, and of both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import JOB as FORWARD_JOB
from bench import Bench, ScriptedDevice, bench_of, coordinator, good_report
from hybrid import JOB as HYBRID_JOB
from hybrid import STLD, UploadingDevice, delta_report

from edge_runtime.bundle.layout import total_size
from edge_runtime.network.upload import upload
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.protocol.round_log import pack_scalars
from server.compose import Composed
from server.job.job import Job
from server.job.robust import Robust
from server.storage import queries

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

NAN, INF = float("nan"), float("inf")


def scalars(*values: float) -> bytes:
    return pack_scalars(np.array(values, np.float32))


FORWARD_DAMAGE: dict[str, dict[str, Any]] = {
    "a scalar that is NaN": {"scalars": scalars(NAN, 1.0)},
    "a scalar that is infinite": {"scalars": scalars(1.0, -INF)},
    "a scalar out of bounds": {"scalars": scalars(1.0, 1e30)},
    "too few scalars": {"scalars": scalars(1.0)},
    "too many scalars": {"scalars": scalars(1.0, 2.0, 3.0)},
    "no scalars": {"scalars": b""},
    "half a scalar": {"scalars": scalars(1.0, 2.0)[:-2]},
}
COMMON_DAMAGE: dict[str, dict[str, Any]] = {
    "another adapter": {"adapter_sha256": "0" * 64},
    "a later round": {"round": 7},
    "a later attempt": {"attempt": 7},
    "another job": {"job": "other"},
    "another device's name": {"device": "good-1"},
    "no examples": {"examples": 0},
    "absurdly many examples": {"examples": 2**50},
    "negative seconds": {"seconds": -1.0},
    "seconds that are NaN": {"seconds": NAN},
    "seconds that are infinite": {"seconds": INF},
    "a loss that is NaN": {"loss": NAN},
    "a loss that is infinite": {"loss": INF},
    "a negative speed": {"link_bytes_per_s": -5.0},
    "negative bytes": {"blob_bytes": -1},
}


def wrong_delta(change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Bench], bytes]:
    def made(bench: Bench) -> bytes:
        parameters = bench.bundle.manifest.parameters
        movement = np.full(total_size(parameters), 1e-3, np.float32)
        change(movement)
        return encode_delta(movement, parameters, [0, 2], 3)

    return made


def put(index: int, value: float) -> Callable[[Bench], bytes]:
    return wrong_delta(lambda movement: movement.__setitem__(index, value))


DELTA_DAMAGE: dict[str, dict[str, Any]] = {
    "a delta with NaN": {"data": put(0, NAN)},
    "a delta with infinity": {"data": put(-1, INF)},
    "a delta that the steps cannot reach": {"data": wrong_delta(lambda movement: movement.fill(50.0))},
    "a delta above max_delta_norm": {"data": wrong_delta(lambda movement: movement.fill(0.04))},
    "a truncated delta": {"data": lambda bench: put(0, 0.0)(bench)[:-5]},
    "a delta of noise": {"data": lambda _bench: bytes(range(256)) * 4},
    "an empty delta": {"data": lambda _bench: b""},
    "other layers than it says": {"layers": [0, 1], "data": put(0, 0.0)},
    "a layer that is not there": {"layers": [0, 3], "data": put(0, 0.0)},
    "layers out of order": {"layers": [2, 0], "data": put(0, 0.0)},
    "another level": {"level": 1},
    "a delta that is never sent": {"delta": BlobRef("7" * 64, 100)},
    "a delta larger than the layout": {"delta": BlobRef("7" * 64, 2**40)},
}


class Bad(ScriptedDevice):
    """A device whose report has some damage, and is sent twice; it uploads what it is asked for, if it has it."""

    def __init__(self, bench: Bench, name: str, damage: dict[str, Any], *, backprop: bool) -> None:
        self.damage, self.backprop = damage, backprop
        self.delta: bytes | None = None
        self.report: Any = None
        super().__init__(bench, name, self.bad_answer)

    def bad_answer(self, plan: Any) -> list[Any]:
        changes = {**self.damage}
        if self.backprop:
            data = changes.pop("data", None)
            made = {} if data is None else {"data": data(self.bench)}
            layers = {"layers": changes.pop("layers")} if "layers" in changes else {}
            self.report, self.delta = delta_report(self.bench, plan, self.name, **made, **layers)
        else:
            self.report = good_report(plan, self.name)
        self.report = msgspec.structs.replace(self.report, **changes)
        return [self.report] * 2

    def turn(self) -> None:
        before = len(self.acks)
        super().turn()
        if self.delta is not None and any(ack.outcome == "upload" for ack in self.acks[before:]):
            blob, data, self.delta = self.report.delta, self.delta, None
            if blob.size_bytes == len(data):
                path = self.bench.root / f"{self.name}.delta"
                path.write_bytes(data)
                upload(self.bench.url, blob.sha256, path)
            self.send("report", self.report)

    def send(self, kind: Any, message: Any, *, retain: bool = False) -> None:
        """Send also what a device of this version would not: a real attacker does."""
        self.transport.publish(self.bench.topic(kind, self.name), msgspec.msgpack.encode(message), retain=retain)


class Thief(ScriptedDevice):
    """A device that announces the delta of another one as its own, with layers that the delta does not have."""

    def __init__(self, bench: Bench, name: str, victim: UploadingDevice) -> None:
        self.victim, self.plan = victim, None
        super().__init__(bench, name, self.keep_plan)

    def keep_plan(self, plan: Any) -> list[Any]:
        self.plan = plan
        return []

    def turn(self) -> None:
        super().turn()
        if self.plan is not None and any(ack.outcome == "taken" for ack in self.victim.acks):
            assert self.victim.sent is not None
            report, _ = delta_report(self.bench, self.plan, self.name, layers=[0, 1])
            self.send("report", msgspec.structs.replace(report, delta=self.victim.sent[0].delta))
            self.plan = None


def test_who_announces_the_delta_of_another_device_does_not_delete_it(tmp_path: Path, leveled: Bundle) -> None:
    with bench_of(tmp_path, leveled) as bench:
        victim = UploadingDevice(bench, "deep-1")
        thief = Thief(bench, "bad", victim)
        now = [0.0]
        job = msgspec.structs.replace(WITH_BAD_BACKPROP, min_devices=2)
        with coordinator(bench, job, lambda: now[0]) as (made, ledger):
            drive(made, [victim, thief], now)
            (closed,) = queries.closed_rounds(ledger, "job")
            counted = [offer.device for offer in queries.counted_reports(ledger, "job")]
    assert thief.acks[-1].outcome == "invalid"
    assert counted == ["deep-1"]
    assert closed.result_sha256 == result_of(tmp_path / "alone", leveled, STLD_JOB, {"deep-1": True}, None)[0]


def drive(made: Composed, devices: list[Any], now: list[float]) -> None:
    """Run a job to its end; the clock moves when nobody says anything, so a silent device costs no real time."""
    made.job_run.begin(resumed=made.resumed)
    try:
        for _ in range(5000):
            if made.job_run.step():
                return
            for device in devices:
                device.turn()
            now[0] += 0.01 if made.coordinator.handle_next(0.001) else 0.5
        raise AssertionError("the job does not end")
    finally:
        made.job_run.close()


def result_of(
    root: Path, bundle: Bundle, job: Job, good: dict[str, bool], bad: tuple[dict[str, Any], bool] | None
) -> tuple[str, str | None, list[str]]:
    """Run one round; return the adapter's hash, the log's hash, and who was counted.

    Args:
        root: where everything is kept.
        bundle: the bundle.
        job: the job.
        good: by device, whether it backpropagates.
        bad: the damage of another device's reports, and whether it backpropagates; None: there is no such device.
    """
    root.mkdir()
    with bench_of(root, bundle) as bench:
        devices: list[Any] = [
            UploadingDevice(bench, name)
            if backprop
            else ScriptedDevice(bench, name, lambda plan, name=name: [good_report(plan, name)])  # type: ignore[misc]
            for name, backprop in good.items()
        ]
        if bad is not None:
            devices.insert(0, Bad(bench, "bad", bad[0], backprop=bad[1]))
        job = msgspec.structs.replace(job, min_devices=len(devices), min_reports=1, deadline_s=30.0, accept_s=20.0)
        now = [0.0]
        with coordinator(bench, job, lambda: now[0]) as (made, ledger):
            drive(made, devices, now)
            (closed,) = queries.closed_rounds(ledger, "job")
            counted = [offer.device for offer in queries.counted_reports(ledger, "job")]
    return closed.result_sha256, closed.log_sha256, counted


ROBUST = Robust(max_delta_norm=0.5, max_delta_norm_ratio=2.0, clip_scalars=2.0)
STLD_JOB = msgspec.structs.replace(
    HYBRID_JOB,
    robust=ROBUST,
    stld=msgspec.structs.replace(STLD, device_levels={"deep-1": 2, "deep-2": 2}),
)
WITH_BAD_BACKPROP = msgspec.structs.replace(
    STLD_JOB, stld=msgspec.structs.replace(STLD, device_levels={"deep-1": 2, "deep-2": 2, "bad": 2})
)
ONE_ROUND = msgspec.structs.replace(FORWARD_JOB, rounds=1, robust=Robust(clip_scalars=2.0))
FORWARD = {"good-1": False, "good-2": False}
BACKPROP = {"deep-1": True, "deep-2": True}


@pytest.mark.parametrize("kind", ["forward", "backprop", "hybrid, bad forward", "hybrid, bad backprop"])
def test_no_kind_of_damage_leaves_a_trace(kind: str, tmp_path: Path, leveled: Bundle) -> None:
    is_backprop = kind.endswith("backprop")
    damage = COMMON_DAMAGE | (DELTA_DAMAGE if is_backprop else FORWARD_DAMAGE)
    good = {"forward": FORWARD, "backprop": BACKPROP}.get(kind, FORWARD | BACKPROP)
    job = ONE_ROUND if kind == "forward" else WITH_BAD_BACKPROP if is_backprop else STLD_JOB
    wanted = result_of(tmp_path / "without", leveled, job, good, None)
    assert wanted[2] == sorted(good)
    # Rounds of both kinds merge what the other tests have shown to be rejected: a third of the damage will do.
    every = 3 if kind.startswith("hybrid") else 1
    for index, (name, changes) in enumerate(list(damage.items())[::every]):
        found = result_of(tmp_path / str(index), leveled, job, good, (changes, is_backprop))
        assert found == wanted, name
