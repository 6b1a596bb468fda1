"""Rounds with both kinds of devices: plans, deltas, what goes wrong with them, and resuming to the same hash."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import FORWARD_ONLY, Bench, ScriptedDevice, coordinator, drain, good_report, run_with, sync
from fleets import Fleet, free_port, write_job
from layered import BowlEngines, with_levels
from tiny_models import reviews, write_rows

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.agent.backprop_plan import check_plan
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import ActiveLayers, BackpropSettings, Personal, mean_gradient, train_backprop
from edge_runtime.bundle import memory_need
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.cli import main
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import EncodedRows
from edge_runtime.device import memory
from edge_runtime.device.machine import this_machine
from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.network.upload import upload
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.messages import (
    AdapterRef,
    BackpropPlan,
    Birth,
    BlobRef,
    Capability,
    DeltaReport,
    PlanAccepted,
    PlanRefused,
    ReportAck,
    decode_message,
    encode_message,
)
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import Kind
from edge_runtime.store.personal import load_personal
from edge_runtime.store.store import Store
from server.errors import JobError
from server.fleet.devices import Device
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import Job, JobStld, read_job
from server.planning.levels import largest_level, takes_part
from server.serve import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.blobs import BlobStore
from server.storage.ledger import LEDGER_FILE, Ledger
from server.views.summary import job_devices
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

STLD = JobStld(steps=3, batch_size=4, learning_rate=0.05, device_levels={"deep": 3, "half": 2})
JOB = Job(
    name="job",
    eval_file="unused",
    rounds=1,
    steps=1,
    batch_size=4,
    split=2,
    step=StepRule(back_perturbations=2, learning_rate=0.05),
    stld=STLD,
)


@pytest.fixture(scope="session")
def leveled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_levels(tiny_bundle, tmp_path_factory.mktemp("leveled") / "bundle")


@pytest.fixture
def bench(tmp_path: Path, leveled: Bundle) -> Iterator[Bench]:
    blobs, uploads = BlobStore(tmp_path / "blobs"), Uploads(BlobStore(tmp_path / "deltas"))
    with serve_http(make_app(blobs, uploads), "127.0.0.1", 0) as port:
        yield Bench(tmp_path, leveled, f"http://127.0.0.1:{port}/blobs", blobs, uploads)


# -- a device ---------------------------------------------------------------------------------------------------------


def backprop_plan(bench: Bench, **changes: Any) -> BackpropPlan:
    plan = BackpropPlan(
        job="job",
        job_seed=0,
        round=0,
        attempt=0,
        bundle_sha256=bench.bundle.sha256,
        adapter=bench.initial(),
        stld=Stld(steps=3, batch_size=4, learning_rate=0.05, personal_share=0.34),
        level=2,
        deadline_s=60.0,
        blob_url=bench.url,
    )
    return msgspec.structs.replace(plan, **changes)


def make_agent(bench: Bench, bytes_free: int | None = None, **changes: Any) -> Agent:
    installed = bench.store.bundles / bench.bundle.sha256
    if not installed.exists():
        installed.symlink_to(bench.bundle.path, target_is_directory=True)
    config = msgspec.structs.replace(bench.config, **changes)
    transport = bench.hub.join(lost_will(config, "boot"))
    machine = this_machine(config.eligibility, bench.store.root)
    if bytes_free is not None:
        machine = dataclasses.replace(machine, free_bytes=lambda: bytes_free)
    return Agent(config, bench.store, transport, "boot", BowlEngines(), machine)


def answers(bench: Bench, agent: Agent, *messages: tuple[Kind, Any]) -> list[Any]:
    """What an agent reports to plans and acknowledgements, one after the other."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    for kind, message in messages:
        bench.hub.publish(bench.topic(kind), encode_message(message), retain=False)
        for _ in range(4):
            agent.serve_waiting()
    return drain(server)


def ack(outcome: Any, attempt: int = 0) -> tuple[Kind, ReportAck]:
    return "report/ack", ReportAck(job="job", round=0, attempt=attempt, outcome=outcome)


def test_a_device_trains_uploads_when_asked_and_keeps_its_layers(bench: Bench) -> None:
    plan = backprop_plan(bench)
    accepted, report = answers(bench, make_agent(bench), ("plan", plan))
    assert isinstance(accepted, PlanAccepted)
    assert isinstance(report, DeltaReport)
    assert (report.level, report.personal_layers, report.examples) == (2, 1, 12)
    bench.uploads.expect(report.delta)
    restarted = make_agent(bench)  # its journal has the report, its state directory the delta
    assert answers(bench, restarted, ("plan", plan), ack("upload"), ack("taken")) == [report, report]
    data = bench.uploads.blobs.read(report.delta.sha256)
    assert data is not None
    assert hashlib.sha256(data).hexdigest() == report.delta.sha256
    journal = bench.store.journal()
    personal = load_personal(Store(bench.root / "state"), journal.personal_sha256, bench.bundle, "job")
    (layer,) = personal.layers
    assert layer not in report.layers
    where = layer_slices(bench.bundle.manifest).layers[layer]
    assert not np.array_equal(personal.layers[layer], bench.bundle.initial_adapter()[where])
    again = answers(bench, restarted, ("plan", backprop_plan(bench, attempt=1)))[-1]
    assert again.delta == report.delta  # a new attempt begins with the layers from before the round
    assert bench.store.journal().personal_sha256 == journal.personal_sha256


def test_personal_layers_are_used_in_the_devices_own_predictions(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """In ``covey-edge predict``: they differ from the shared adapter's predictions, and survive the agent."""
    theta = golden_adapter(bench.bundle.initial_adapter(), bench.bundle.manifest.golden)  # its head is not zero
    adapter = AdapterRef(bench.blobs.add(theta.tobytes()), None, None)
    stld = Stld(steps=8, learning_rate=0.5, personal_share=1.0, weight_decay=0.1)
    answers(bench, make_agent(bench), ("plan", backprop_plan(bench, adapter=adapter, stld=stld, level=3)))
    edge = bench.root / "edge.toml"
    edge.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')
    printed = []
    for flags in ([], ["--shared"]):
        assert main(["predict", "--config", str(edge), *flags, "a fine film", "--format", "json"]) == 0
        printed.append(msgspec.json.decode(capsys.readouterr().out)["predictions"][0]["probabilities"]["good"])
    assert abs(printed[0] - printed[1]) > 1e-4
    path = bench.store.personal_file(bench.store.journal().personal_sha256 or "")
    path.write_bytes(b"broken")
    assert main(["predict", "--config", str(edge), "a fine film", "--format", "json"]) == 5
    assert "missing or damaged" in msgspec.json.decode(capsys.readouterr().out)["error"]


def test_a_device_that_is_asked_again_and_again_gives_up(bench: Bench) -> None:
    agent = make_agent(bench)
    report = answers(bench, agent, ("plan", backprop_plan(bench)))[-1]
    bench.uploads.expect(report.delta)
    seen = answers(bench, agent, *[ack("upload")] * 5)
    assert [type(message) for message in seen] == [DeltaReport] * 3 + [PlanRefused] * 2
    unexpected = make_agent(bench)
    bench.uploads.forget_all()
    refused = answers(bench, unexpected, ("plan", backprop_plan(bench)), ack("upload"))[-1]
    assert refused.code == 7
    assert "404" in refused.message


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("memory", 9, r"2 active layers and micro-batches of 1 need \d+ bytes, 1000 are free"),
        ("level", 5, "no training graph with 7 active layers"),
        ("owner", 3, "this device is forward-only"),
        ("privacy", 3, "this device asks for 1 or more"),
        ("bundle", 5, "no training graphs"),
        ("rescale", 5, "do not rescale residuals"),
    ],
)
def test_a_plan_that_a_device_cannot_do_is_refused_before_it_starts(
    bench: Bench, tiny_bundle: Bundle, case: str, code: int, message: str
) -> None:
    changes: dict[str, Any] = {}
    plan = backprop_plan(bench)
    if case == "memory":
        changes = {"bytes_free": 1000}
    elif case == "level":
        plan = backprop_plan(bench, level=7)
    elif case == "owner":
        changes = {"training": "forward-only"}
    elif case == "privacy":
        changes = {"least_noise_multiplier": 1.0}
    elif case == "rescale":
        plan = backprop_plan(bench, stld=Stld(rescale=True))
    else:
        bench.bundle = tiny_bundle
        plan = backprop_plan(bench)
    agent = make_agent(bench, **changes)
    refused = answers(bench, agent, ("plan", plan))[-1]
    assert isinstance(refused, PlanRefused)
    assert refused.code == code
    assert re.search(message, refused.message)


def test_a_device_short_of_memory_trains_with_fewer_rows_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    free = memory_need.bytes_for(memory_need.level_need(bench.bundle.manifest, 2), 3)
    caplog.set_level("INFO")
    report = answers(bench, make_agent(bench, free), ("plan", backprop_plan(bench)))[-1]
    assert isinstance(report, DeltaReport)
    assert report.level == 2
    assert "memory is short: 3 of 4 rows at once" in caplog.text


def test_a_device_says_what_it_can_hold(bench: Bench) -> None:
    server = bench.hub.join()
    server.subscribe(bench.topic("birth"))
    agent = make_agent(bench)
    answers(bench, agent, ("plan", sync(bench, bench.initial())))
    births = [
        decode_message(event.payload, Birth)
        for event in iter(lambda: server.receive(0), None)
        if hasattr(event, "payload")
    ]
    assert births[0].capability.levels is None  # no bundle yet
    levels = births[-1].capability.levels
    assert levels is not None
    assert [need.level for need in levels] == [1, 2, 3]
    assert (births[-1].capability.bytes_free or 0) > levels[-1].bytes_needed
    assert memory.free_bytes() is not None


# -- the server -------------------------------------------------------------------------------------------------------


def device(capability: Capability, bundle_sha256: str | None = None, name: str = "pi") -> Device:
    birth = Birth(
        device=name,
        boot_id="1",
        covey_version="0",
        python_version="3",
        machine="m",
        runtimes={},
        methods=["spzo"],
        rows=None,
        bundle_sha256=bundle_sha256,
        adapter_sha256=None,
        capability=capability,
    )
    return Device(name, "online", birth)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps memory that was freed, and can give it back")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Small blocks below one that is still held: the allocator keeps them all."""
    code = """
import sys
from edge_runtime.device.memory import give_back
def held():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
before = held()
blocks = [bytearray(b"x" * 100_000) for _ in range(1000)]
last = bytearray(b"x" * 100_000)
del blocks
kept = held()
give_back()
print(kept - before, held() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept_kib, left_kib = map(int, found.split())
    assert kept_kib > 80_000
    assert left_kib < 20_000


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


def delta_report(bench: Bench, plan: BackpropPlan, name: str, **changes: Any) -> tuple[Any, bytes]:
    """A good report with its delta: every sent parameter moves by 1e-3."""
    parameters, layers = bench.bundle.manifest.parameters, changes.get("layers", [0, 2])
    data = changes.pop("data", None)
    if data is None:
        data = encode_delta(np.full(total_size(parameters), 1e-3, np.float32), parameters, layers, 3)
    report = DeltaReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=name,
        adapter_sha256=plan.adapter.file.sha256,
        delta=BlobRef(hashlib.sha256(data).hexdigest(), len(data)),
        layers=layers,
        personal_layers=0,
        level=plan.level,
        examples=5,
        loss=0.7,
        seconds=1.0,
        peak_rss_bytes=None,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        blob_bytes=0,
    )
    return msgspec.structs.replace(report, **{k: v for k, v in changes.items() if k != "layers"}), data


class UploadingDevice(ScriptedDevice):
    """A scripted device that sends its delta when it is asked to."""

    def __init__(self, bench: Bench, name: str, **changes: Any) -> None:
        self.changes = changes
        self.sent: tuple[Any, bytes] | None = None
        super().__init__(bench, name, self.first_answer)  # type: ignore[arg-type]

    def first_answer(self, plan: BackpropPlan) -> list[Any]:
        assert isinstance(plan, BackpropPlan)
        self.sent = delta_report(self.bench, plan, self.name, **self.changes)
        return [self.sent[0]]

    def turn(self) -> None:
        before = len(self.acks)
        super().turn()
        if self.sent is not None and any(ack.outcome == "upload" for ack in self.acks[before:]):
            path = self.bench.root / f"{self.name}.delta"
            path.write_bytes(self.sent[1])
            upload(self.bench.url, self.sent[0].delta.sha256, path)
            self.send("report", self.sent[0])


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
        ({"data": "layers"}, "does not hold the tensors"),
        ({"data": "nan"}, "not finite"),
        ({"data": "norm"}, "has norm"),
    ],
    ids=str,
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
    assert detail == bad.acks[-1].reason
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
    auto.send("birth", device(can, name="auto").birth, retain=True)  # type: ignore[arg-type]
    job = msgspec.structs.replace(JOB, max_attempts=3, deadline_s=2.0)
    with coordinator(bench, job) as (made, _), pytest.raises(JobError, match="fewer than 1 reports"):
        run_with(made, [auto])
    assert levels == [3, 2, 1]


# -- whole fleets -----------------------------------------------------------------------------------------------------


def fleet(root: Path) -> list[EdgeConfig]:
    configs = []
    for index, name in enumerate(["deep", "half", "phone", "tablet"]):
        write_rows(reviews(8 + 2 * index, seed=index), root / f"{name}.jsonl")
        training = "forward-only" if name in ("phone", "tablet") else "auto"
        configs.append(
            EdgeConfig(
                name=name,
                broker="mqtt://unused",
                data=DataConfig(str(root / f"{name}.jsonl")),
                threads=1,
                state_dir=str(root / name),
                training=training,
            )
        )
    return configs


def hybrid_job(root: Path, bundle: Bundle, **fields: Any) -> tuple[FittedJob, Bundle]:
    stld = {"steps": 4, "batch_size": 4, "learning_rate": 0.02, "personal_share": 0.34} | fields.pop("stld", {})
    path = write_job(root, **{"rounds": 4, "min_devices": 4, "min_reports": 4, "stld": stld} | fields)
    return load_job(path, bundle.path)


def run_fleet(root: Path, bundle: Bundle, stop_after: int | None = None, **fields: Any) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    fitted, bundle = hybrid_job(root, bundle, **fields)
    closed: list[Any] = []

    def stop() -> bool:
        return stop_after is not None and len(closed) >= stop_after

    def observe(event: Any) -> None:
        if type(event).__name__ in ("ReportTaken", "RoundClosed") and stop_after is not None:
            closed.append(event)

    return run_in_process(
        fitted,
        bundle,
        root / "server",
        fleet(root),
        observe,
        stop,
        BowlEngines(),
    )


def test_a_hybrid_fleet_learns_agrees_and_resumes_to_the_same_hash(leveled: Bundle, tmp_path: Path) -> None:
    """run_in_process checks that every device ends on the server's hash."""
    whole = run_fleet(tmp_path / "whole", leveled)
    for stop_after in (1, 3, 7, 12):
        root = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(JobError, match="was stopped"):
            run_fleet(root, leveled, stop_after)
        assert run_fleet(root, leveled)["adapter_sha256"] == whole["adapter_sha256"]
    ledger = Ledger(tmp_path / "whole" / "server" / LEDGER_FILE, read_only=True)
    offers = [offer for offer in queries.offers_of(ledger, "job") if offer.index == 3]
    assert [(offer.device, offer.level, offer.personal_layers) for offer in offers] == [
        ("deep", 3, 1),
        ("half", 3, 1),
        ("phone", None, None),
        ("tablet", None, None),
    ]
    theta = np.fromfile(tmp_path / "whole" / "server" / "blobs" / whole["adapter_sha256"], np.float32)
    assert adapter_sha256(theta) == whole["adapter_sha256"]
    bowl = BowlEngines().make_training_engine(leveled)
    assert bowl.loss(theta) < 0.7 * bowl.loss(leveled.initial_adapter())


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"stld": {"forward_only": False}, "min_reports": 2, "min_devices": 2}, 4),
        ({"stld": {"device_levels": {"deep": 0, "half": 0}}}, 0),
        ({"server_momentum": 0.5, "stld": {"merging": "noise", "draw": "bernoulli"}}, 4),
    ],
    ids=["backprop only", "forward-only", "momentum"],
)
def test_jobs_of_one_kind_and_with_momentum(
    leveled: Bundle, tmp_path: Path, fields: dict[str, Any], files: int
) -> None:
    run_fleet(tmp_path / "run", leveled, **fields)
    ledger = Ledger(tmp_path / "run" / "server" / LEDGER_FILE, read_only=True)
    assert sum(closed.log_sha256 is None for closed in queries.closed_rounds(ledger, "job")) == files


JOB_TOML = 'name = "job"\neval_file = "test.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stld]\nlevels = [2, 9]\n", "level 9 of .stld. is not in the bundle; it has 1, 2, 3"),
        ("[stld.device_levels]\npi = 7\n", "level 7"),
        ('[stld]\nshape = "round"\n', "shape"),
        ("[stld]\npersonal_share = 2\n", "personal_share"),
        ("[stld]\nrescale = true\n", "rescale = true: the bundle's training graphs do not"),
        (
            'weighting = "uniform"\n[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n[stld]\n',
            "exclude each other",
        ),
    ],
)
def test_a_job_that_does_not_fit_is_named(leveled: Bundle, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.toml").write_text(JOB_TOML + text)
    with pytest.raises(ConfigError, match=message):
        fit_to_bundle(read_job(tmp_path / "job.toml"), leveled.manifest, leveled.sha256)


def test_a_bundle_without_training_graphs_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB_TOML + "[stld]\n")
    job = read_job(tmp_path / "job.toml")
    with pytest.raises(ConfigError, match="no training graphs"):
        fit_to_bundle(job, tiny_bundle.manifest, tiny_bundle.sha256)


# -- real training graphs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def graphs(tiny_export: Any) -> Bundle:
    """A tiny BERT with training graphs of 1, 2 and 3 of its 3 layers."""
    bundle: Bundle = tiny_export("bert", levels=(1, 2, 3))
    return bundle


def test_micro_batches_add_up_to_the_batch(graphs: Bundle) -> None:
    engine, theta = Engines(threads=1).make_training_engine(graphs), graphs.initial_adapter()
    rows = EncodedRows([[2, 5 + n, 7, 3][: 2 + n % 3] for n in range(7)], [n % 2 for n in range(7)], 0)
    whole, parts = np.zeros_like(theta), np.zeros_like(theta)
    losses = [
        mean_gradient(engine, theta, ActiveLayers([0, 2]), [rows.batch(part) for part in indices], out)
        for indices, out in (([range(7)], whole), ([range(3), range(3, 6), range(6, 7)], parts))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.abs(whole - parts).max() < 1e-6
    assert np.abs(whole).max() > 1e-3


def test_a_device_runs_fewer_rows_at_once_where_memory_is_short(graphs: Bundle) -> None:
    """The level is what the plan says; what changes is the size of the micro-batches."""
    rows = EncodedRows([[2, 5 + n, 7, 3][: 2 + n % 3] for n in range(8)], [n % 2 for n in range(8)], 0)
    need = memory_need.level_need(graphs.manifest, 3)

    def full_depth(stld: Stld) -> BackpropPlan:
        return BackpropPlan(
            job="job",
            job_seed=1,
            round=0,
            attempt=0,
            bundle_sha256=graphs.sha256,
            stld=stld,
            level=3,
            deadline_s=60.0,
            adapter=AdapterRef(BlobRef("0" * 64, 4), None, None),
            blob_url="http://server/blobs",
        )

    movements, sizes = [], []
    for free, micro in ((None, None), (memory_need.bytes_for(need, 3), None), (memory_need.bytes_for(need, 3), 2)):
        stld = Stld(steps=2, batch_size=8, micro_batch_size=micro)
        levels = check_plan(full_depth(stld), graphs, free, "onnxruntime")
        engine = CountingEngine(graphs, Engines(threads=1).opener())
        theta, fresh = graphs.initial_adapter(), Personal({}, LayerStatistics.of(3))
        work = BackpropSettings(1, 0, "pi", stld, 3, levels)
        result = train_backprop(engine, theta, rows, work, layer_slices(graphs.manifest), fresh)
        assert result is not None
        movements.append(result.movement)
        sizes.append(engine.sizes)
    assert sizes == [[8, 8], [3, 3, 2] * 2, [2] * 8]
    # AdamW divides by the gradient's size: rounding can only move what hardly has a gradient.
    assert np.quantile(np.abs(movements[0] - movements[1]), 0.99) < 1e-5
    with pytest.raises(TrainingError, match=r"3 active layers and micro-batches of 1 need \d+ bytes, 5 are free"):
        check_plan(full_depth(Stld()), graphs, 5, "onnxruntime")


class CountingEngine(BundleTrainingEngine):
    """Knows how many rows it was given each time."""

    def gradients(self, theta: Any, layers: Any, batch: Any, out: Any, scales: Any = None) -> float:
        self.sizes = [*getattr(self, "sizes", []), len(batch.labels)]
        return super().gradients(theta, layers, batch, out, scales)


def test_a_fleet_learns_on_onnx_runtime(graphs: Bundle, tmp_path: Path) -> None:
    fitted, bundle = hybrid_job(tmp_path, graphs, rounds=3, stld={"learning_rate": 0.01, "steps": 8})
    result = run_in_process(fitted, bundle, tmp_path / "server", fleet(tmp_path))
    assert result["loss_end"] < result["loss_start"] - 0.01
    rows = job_devices(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True), "job")
    assert [(row["device"], row["level"], row["reports"]) for row in rows] == [
        ("deep", 3, 3),
        ("half", 3, 3),
        ("phone", None, 3),
        ("tablet", None, 3),
    ]
    assert all(row["bytes_up"] > 0 and row["mean_seconds"] > 0 for row in rows)
    assert (rows[0]["peak_rss_bytes"] or 0) > 1e7


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_server_and_a_device_killed_in_a_hybrid_round_end_on_the_same_bits(graphs: Bundle, tmp_path: Path) -> None:
    """Real processes; kill -9 of the server and of a backprop device, both started again."""

    def run(root: Path, *, kill: bool) -> str:
        root.mkdir()
        made = Fleet(root, graphs, free_port(), external=False)
        stld = {"steps": 6, "batch_size": 4, "personal_share": 0.34, "device_levels": {"b": 2, "c": 0}}
        job = write_job(root, rounds=3, steps=6, min_devices=3, min_reports=3, stld=stld)
        try:
            server = made.serve(job)
            devices = [made.device(name, seed) for seed, name in enumerate("abc")]
            if kill:
                server.wait_event("report")
                server.popen.kill()
                server.popen.wait()
                devices[0].popen.kill()
                devices[0].popen.wait()
                server = made.serve(job)
                devices[0] = made.device("a", 0)
            result = server.result()
            assert {device.result()["adapter_sha256"] for device in devices} == {result["adapter_sha256"]}
            assert not list((root / "server" / "deltas").glob("*"))
            return str(result["adapter_sha256"])
        finally:
            made.stop()

    assert run(tmp_path / "whole", kill=False) == run(tmp_path / "killed", kill=True)
