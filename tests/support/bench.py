"""A bench for tests of messages: a hub, blobs over real HTTP, a device's store, a coordinator, scripted devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tiny_models import reviews, write_rows

from edge_runtime.agent.agent import Agent, Finished
from edge_runtime.agent.announcer import lost_will
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.examples import DataConfig
from edge_runtime.forward_only.replay import replay
from edge_runtime.network.in_process import Hub, InProcessTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import AnyMessage, decode_device_report, decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import AdapterRef, BlobRef, Plan, SyncPlan, TrainPlan
from edge_runtime.protocol.presence import Birth, Capability, DeviceState, Hello
from edge_runtime.protocol.reports import ReportAck, RoundReport, Synced
from edge_runtime.protocol.round_log import RoundLog, encode_chain, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import Kind, hello_topic, topic_for
from edge_runtime.store.store import Store
from edge_runtime.values import FloatVector
from server.compose import Composed, Stores, compose
from server.evaluation import BackgroundEvaluator, Evaluation
from server.job.fitted import fit_to_bundle
from server.job.job import Job
from server.rounds.aggregate import aggregate
from server.rounds.services import Services
from server.storage.adapters import RoundBase
from server.storage.blobs import BlobStore
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import RoundPlan, TakenReport
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

FORWARD_ONLY = Capability(kind="forward-only", levels=[], bytes_free=None)
RULE = StepRule(back_perturbations=2, learning_rate=0.05)
JOB = Job(name="job", eval_file="unused", rounds=2, steps=1, batch_size=4, split=2, min_reports=1, step=RULE)


class Bench:
    """A hub, blobs behind real HTTP, a device's store: what both kinds of test need."""

    def __init__(self, root: Path, bundle: Bundle, url: str, blobs: BlobStore, uploads: Uploads) -> None:
        self.root, self.bundle, self.url, self.blobs, self.uploads = root, bundle, url, blobs, uploads
        self.hub = Hub()
        self.store = Store(root / "state")
        self.config = EdgeConfig(
            name="pi",
            broker="mqtt://unused",
            data=DataConfig(str(root / "data.jsonl")),
            threads=1,
            state_dir=str(root / "state"),
        )
        write_rows(reviews(12, 3), root / "data.jsonl")
        self.blobs.add_bundle(bundle)

    def topic(self, kind: Kind, device: str = "pi") -> str:
        return topic_for("default", device, kind)

    def agent(self) -> Agent:
        return Agent(self.config, self.store, self.hub.join(lost_will(self.config, "boot")), "boot")

    def train_plan(self, adapter: AdapterRef, **changes: Any) -> TrainPlan:
        plan = TrainPlan(
            job="job",
            job_seed=0,
            round=0,
            attempt=0,
            bundle_sha256=self.bundle.sha256,
            adapter=adapter,
            rule=RULE,
            split=2,
            steps=1,
            batch_size=4,
            mean_square=None,
            privacy=None,
            deadline_s=60.0,
            blob_url=self.url,
        )
        return msgspec.structs.replace(plan, **changes)

    def initial(self) -> AdapterRef:
        theta = self.bundle.initial_adapter()
        return AdapterRef(BlobRef(adapter_sha256(theta), 4 * theta.size), None, None)

    def next_adapter(self) -> tuple[AdapterRef, FloatVector, BlobRef]:
        """An adapter one round on: its file and the log to it are on the server."""
        theta = self.bundle.initial_adapter()
        scalars = np.array([0.5, -1.5], np.float32)
        reports = {"pi": TakenReport(pack_scalars(scalars), 12)}
        log = self.first_round(reports)
        result = replay(theta, log)
        file = self.blobs.add(result.tobytes())
        blob = self.blobs.add(encode_chain([msgspec.structs.replace(log, result_sha256=file.sha256)]))
        return AdapterRef(file, blob, log.base_sha256), result, blob

    def first_round(self, reports: dict[str, TakenReport]) -> RoundLog:
        """The log of a first round; its result is not in it."""
        initial = adapter_sha256(self.bundle.initial_adapter())
        parameters = self.bundle.manifest.parameters
        return aggregate(parameters, JOB, 0, RoundPlan(2, JOB.step), RoundBase(initial, None, None), reports).log


@contextlib.contextmanager
def bench_of(root: Path, bundle: Bundle) -> Iterator[Bench]:
    """Yield a bench for a bundle, its blobs served over HTTP."""
    blobs, uploads = BlobStore(root / "blobs"), Uploads(BlobStore(root / "deltas"))
    with serve_http(make_app(blobs, uploads), "127.0.0.1", 0) as port:
        yield Bench(root, bundle, f"http://127.0.0.1:{port}/blobs", blobs, uploads)


def talk(bench: Bench, plans: list[Plan]) -> tuple[list[Any], Finished | None]:
    """Give plans to an agent, the last of them a sync; return what it reports."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    agent = bench.agent()
    for plan in plans:
        bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    stop_at = time.monotonic() + 60
    finished = agent.run(until_finished=True, should_stop=lambda: time.monotonic() > stop_at)
    return drain(server), finished


def drain(transport: InProcessTransport) -> list[Any]:
    reports = []
    while (event := transport.receive(0)) is not None:
        if isinstance(event, Message):
            reports.append(decode_device_report(event.payload))
    return reports


def sync(bench: Bench, adapter: AdapterRef, round_index: int = 9, **changes: Any) -> SyncPlan:
    plan = SyncPlan(
        job="job",
        round=round_index,
        bundle_sha256=bench.bundle.sha256,
        adapter=adapter,
        final=True,
        blob_url=bench.url,
    )
    return msgspec.structs.replace(plan, **changes)


def birth_of(
    name: str,
    capability: Capability,
    *,
    rows: int | None = None,
    bundle_sha256: str | None = None,
    epoch: str | None = None,
) -> Birth:
    """Return the announcement of a device without an adapter."""
    return Birth(
        device=name,
        boot_id="1",
        connection=1,
        epoch=epoch,
        covey_version="0",
        python_version="3",
        machine="m",
        runtimes={},
        methods=["spzo"],
        rows=rows,
        bundle_sha256=bundle_sha256,
        adapter_sha256=None,
        capability=capability,
    )


class ScriptedDevice:
    """A device made of messages: announces itself and answers each plan with what the test wants."""

    def __init__(self, bench: Bench, name: str, answer: Callable[[TrainPlan], list[Any]]) -> None:
        self.name, self.bench, self.answer = name, bench, answer
        self.transport = bench.hub.join()
        self.transport.subscribe(bench.topic("plan", name))
        self.transport.subscribe(bench.topic("report/ack", name))
        self.acks: list[ReportAck] = []
        self.theta = bench.bundle.initial_adapter()
        self.birth = birth_of(name, FORWARD_ONLY, rows=5)
        self.transport.subscribe(hello_topic("default"))

    def announce(self, epoch: str | None) -> None:
        self.epoch = epoch
        self.send("birth", msgspec.structs.replace(self.birth, epoch=epoch), retain=True)
        self.send("state", DeviceState(state="online", boot_id="1", epoch=epoch), retain=True)

    def send(self, kind: Kind, message: AnyMessage, *, retain: bool = False) -> None:
        self.transport.publish(self.bench.topic(kind, self.name), encode_message(message), retain=retain)

    def turn(self) -> None:
        while (event := self.transport.receive(0)) is not None:
            if not isinstance(event, Message):
                continue
            if event.topic.endswith("/hello"):
                self.announce(decode_message(event.payload, Hello).epoch)
                continue
            if event.topic.endswith("ack"):
                self.acks.append(decode_message(event.payload, ReportAck))
                continue
            plan: Any = decode_plan(event.payload)
            if isinstance(plan, SyncPlan):
                self.send("report", self.synced(plan))
            else:
                for message in self.answer(plan):
                    self.send("report", message)

    def synced(self, plan: SyncPlan) -> Synced:
        return Synced(
            job=plan.job, round=plan.round, device=self.name, adapter_sha256=plan.adapter.file.sha256, blob_bytes=0
        )


def good_report(plan: TrainPlan, device: str, **changes: Any) -> RoundReport:
    report = RoundReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=device,
        adapter_sha256=plan.adapter.file.sha256,
        scalars=pack_scalars(np.array([0.5, 1.0], np.float32)),
        examples=5,
        loss=0.7,
        seconds=1.0,
        front_passes=2,
        back_passes=4,
        front_seconds=0.5,
        back_seconds=0.5,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        blob_bytes=0,
    )
    return msgspec.structs.replace(report, **changes)


@contextlib.contextmanager
def coordinator(
    bench: Bench, job: Job, clock: Callable[[], float] = time.monotonic, blob_mirror: str | None = None
) -> Iterator[tuple[Composed, Ledger]]:
    ledger = Ledger(bench.root / LEDGER_FILE)
    evaluator = BackgroundEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(bench.hub.join(), bench.uploads, evaluator, clock, bench.url, blob_mirror)
    fitted = fit_to_bundle(job, bench.bundle.manifest, bench.bundle.sha256)
    stores = Stores(ledger, bench.blobs, bench.uploads)
    yield compose("default", fitted, bench.bundle, stores, lambda: services, lambda _event: None), ledger
    ledger.close()


def run_with(made: Composed, devices: list[ScriptedDevice]) -> bool:
    stop_at = time.monotonic() + 60

    def turn() -> bool:
        for device in devices:
            device.turn()
        return time.monotonic() > stop_at

    return made.run(turn)
