"""Fleets with both kinds of devices: a job, plans, agents on bowls, devices that upload deltas."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from bench import Bench, ScriptedDevice, birth_of, drain
from fleets import write_job
from layered import BowlEngines
from tiny_models import reviews, write_rows

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.bundle.layout import total_size
from edge_runtime.data.examples import DataConfig
from edge_runtime.device.machine import this_machine
from edge_runtime.network.upload import upload
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import BackpropPlan, BlobRef
from edge_runtime.protocol.presence import Capability
from edge_runtime.protocol.reports import DeltaReport, ReportAck
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import Kind
from server.fleet.devices import Device
from server.job.fitted import FittedJob
from server.job.job import Job, JobStld
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
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


def make_agent(bench: Bench, bytes_free: int | None = None, boot_id: str | None = None, **changes: Any) -> Agent:
    installed = bench.store.bundles / bench.bundle.sha256
    if not installed.exists():
        installed.symlink_to(bench.bundle.path, target_is_directory=True)
    config = msgspec.structs.replace(bench.config, **changes)
    transport = bench.hub.join(lost_will(config, "boot"))
    machine = this_machine(config.eligibility, bench.store.root)
    if bytes_free is not None:
        machine = dataclasses.replace(machine, free_bytes=lambda: bytes_free)
    if boot_id is not None:
        machine = dataclasses.replace(machine, boot_id=boot_id)
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


def device(capability: Capability, bundle_sha256: str | None = None, name: str = "pi") -> Device:
    birth = birth_of(name, capability, bundle_sha256=bundle_sha256)
    return Device(name, "online", birth)


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
