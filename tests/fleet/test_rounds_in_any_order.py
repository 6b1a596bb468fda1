"""Rounds under arbitrary orders of events and bad devices: a stateful property test of the server."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
import pytest
from bench import FORWARD_ONLY, Bench, birth_of, good_report
from bench import JOB as PLAIN
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.forward_only.replay import replay
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, decode_plan
from edge_runtime.protocol.plans import TrainPlan
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused, ReportAck, RoundReport
from edge_runtime.protocol.round_log import pack_scalars
from edge_runtime.protocol.topics import hello_topic
from server.compose import Stores, compose
from server.evaluation import Evaluation
from server.job.fitted import fit_to_bundle
from server.job.job import Job
from server.job.robust import Robust
from server.rounds.aggregate import aggregate
from server.rounds.services import Services
from server.storage import queries
from server.storage.adapters import RoundBase
from server.storage.blobs import BlobStore
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import RoundPlan, TakenReport
from server.views.summary import job_shown
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

NAMES = st.sampled_from(["a", "b", "c", "d"])
NAN = float("nan")
DAMAGE: list[dict[str, Any]] = [
    {"scalars": pack_scalars(np.array([NAN, 1], np.float32))},
    {"scalars": b"\x00" * 4},
    {"scalars": pack_scalars(np.array([1e30, 1], np.float32))},
    {"adapter_sha256": "1" * 64},
    {"loss": NAN},
    {"seconds": -1.0},
    {"examples": 2**60},
    {"round": 10_000},
    {"attempt": 10_000},
    {"job": "other"},
    {"device": "e"},
]
OWN = msgspec.structs.replace(
    PLAIN,
    rounds=1000,
    max_attempts=10_000,
    min_reports=2,
    server_momentum=0.5,
    robust=Robust(clip_scalars=2.0, quarantine_after=4, max_examples=9, compare_paths=True),
)
SHARED = msgspec.structs.replace(
    OWN,
    min_reports=3,
    weighting="uniform",
    step=msgspec.structs.replace(PLAIN.step, shared_directions=True),
    robust=Robust(aggregate="trimmed", quarantine_after=4),
)


class AtOnce:
    """An evaluator that is done at once."""

    def __init__(self) -> None:
        self.found: tuple[int | None, Evaluation] | None = None

    def start(self, index: int | None, theta: Any) -> None:  # noqa: ARG002
        self.found = (index, Evaluation(0.5, 0.5))

    def collect(self) -> tuple[int | None, Evaluation] | None:
        found, self.found = self.found, None
        return found

    def close(self) -> None:
        """Nothing to release."""


class Faults(logging.Handler):
    """Keeps what the coordinator logs of exceptions that it did not expect."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "by a fault of Covey" in record.getMessage():
            self.messages.append(f"{record.getMessage()}: {record.exc_info}")


class Speaker:
    """One device: what it has heard, and its last reports."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.transport = bench.hub.join()
        for topic in (bench.topic("plan", name), bench.topic("report/ack", name), hello_topic("default")):
            self.transport.subscribe(topic)
        self.epoch: str | None = None
        self.plan: TrainPlan | None = None
        self.sent: list[RoundReport] = []
        self.acks: list[ReportAck] = []
        self.connection = 0

    def hear(self) -> None:
        while (event := self.transport.receive(0)) is not None:
            if not isinstance(event, Message):
                continue
            if event.topic.endswith("/hello"):
                self.epoch = decode_message(event.payload, Hello).epoch
            elif event.topic.endswith("/ack"):
                self.acks.append(decode_message(event.payload, ReportAck))
            else:
                plan = decode_plan(event.payload)
                self.plan = plan if isinstance(plan, TrainPlan) else self.plan

    def say(self, kind: Any, message: Any) -> None:
        self.transport.publish(self.bench.topic(kind, self.name), msgspec.msgpack.encode(message), retain=False)


class Rounds(RuleBasedStateMachine):
    """Devices say anything in any order; the server restarts, and time passes."""

    model: ClassVar[Bundle]
    job: ClassVar[Job]
    closed_in_all: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="covey-rounds-"))
        blobs, uploads = BlobStore(self.root / "blobs"), Uploads(BlobStore(self.root / "deltas"))
        self.bench = Bench(self.root, self.model, "http://unused", blobs, uploads)
        self.now = 0.0
        self.faults = Faults()
        logging.getLogger("server").addHandler(self.faults)
        self.speakers = {name: Speaker(self.bench, name) for name in "abcd"}
        self.sent: dict[tuple[int, int, str], RoundReport] = {}
        self.taken: dict[tuple[int, int, str], RoundReport] = {}
        self.replayed: list[tuple[str, Any, float | None]] = []
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.root / LEDGER_FILE, durable=False)
        fitted = fit_to_bundle(self.job, self.model.manifest, self.model.sha256)
        services = Services(self.bench.hub.join(), self.bench.uploads, AtOnce(), lambda: self.now, "http://unused")
        stores = Stores(self.ledger, self.bench.blobs, self.bench.uploads)
        self.made = compose("default", fitted, self.model, stores, lambda: services, lambda _event: None)
        self.made.job_run.begin(resumed=self.made.resumed)
        self.settle()

    def settle(self) -> None:
        """Let the server handle all that was said, and the devices hear all that it answers."""
        for _ in range(3):
            self.made.job_run.step()
            while self.made.coordinator.handle_next(0):
                pass
            for speaker in self.speakers.values():
                speaker.hear()
        for speaker in self.speakers.values():
            for ack in speaker.acks:
                if ack.outcome == "taken":
                    key = (ack.round, ack.attempt, speaker.name)
                    assert key not in self.taken, "a report was taken twice"
                    self.taken[key] = self.sent[key]
            speaker.acks.clear()

    @rule(name=NAMES, of_this_epoch=st.booleans())
    def announces_itself(self, name: str, of_this_epoch: bool) -> None:
        speaker = self.speakers[name]
        speaker.connection += 1
        epoch = speaker.epoch if of_this_epoch else "old"
        birth = msgspec.structs.replace(
            birth_of(name, FORWARD_ONLY, rows=5), epoch=epoch, connection=speaker.connection
        )
        speaker.say("birth", birth)
        speaker.say("state", DeviceState(state="online", boot_id="1", epoch=epoch))
        self.settle()

    @rule()
    def all_announce_themselves(self) -> None:
        for name in self.speakers:
            self.announces_itself(name, of_this_epoch=True)

    @rule(name=NAMES)
    def is_lost(self, name: str) -> None:
        self.speakers[name].say("state", DeviceState(state="lost", boot_id="1"))
        self.settle()

    @rule(name=NAMES)
    def accepts(self, name: str) -> None:
        plan = self.speakers[name].plan
        if plan is not None:
            accepted = PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=name)
            self.speakers[name].say("report", accepted)
        self.settle()

    @rule(name=NAMES)
    def refuses(self, name: str) -> None:
        plan = self.speakers[name].plan
        if plan is not None:
            refused = PlanRefused(
                job=plan.job, round=plan.round, attempt=plan.attempt, device=name, code=9, message="too hot"
            )
            self.speakers[name].say("report", refused)
        self.settle()

    @rule(name=NAMES, scalars=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2))
    def reports(self, name: str, scalars: list[float]) -> None:
        plan = self.speakers[name].plan
        if plan is not None:
            changes = {"scalars": pack_scalars(np.array(scalars, np.float32)), "examples": 3 + len(self.sent) % 9}
            key = (plan.round, plan.attempt, name)
            report = self.sent.get(key) or good_report(plan, name, **changes)
            self.sent[key] = report  # a device that has trained a plan sends that result, however often
            self.speakers[name].sent.append(report)
            self.speakers[name].say("report", report)
        self.settle()

    @rule()
    def all_report(self) -> None:
        for index, name in enumerate(self.speakers):
            self.reports(name, [0.5 + index, -1.0])

    @rule()
    def all_take_part(self) -> None:
        self.all_announce_themselves()
        self.all_report()

    @rule(name=NAMES, damage=st.sampled_from(DAMAGE))
    def reports_damage(self, name: str, damage: dict[str, Any]) -> None:
        plan = self.speakers[name].plan
        if plan is not None:
            self.speakers[name].say("report", msgspec.structs.replace(good_report(plan, name), **damage))
        self.settle()

    @rule(name=NAMES, back=st.integers(1, 6))
    def says_it_again(self, name: str, back: int) -> None:
        """A duplicate, or a report of a round or attempt that is long over."""
        sent = self.speakers[name].sent
        if sent:
            self.speakers[name].say("report", sent[-min(back, len(sent))])
        self.settle()

    @rule(name=NAMES, kind=st.sampled_from(["birth", "state", "report", "profile", "log"]), data=st.binary(max_size=60))
    def says_nonsense(self, name: str, kind: Any, data: bytes) -> None:
        speaker = self.speakers[name]
        speaker.transport.publish(self.bench.topic(kind, name), data, retain=False)
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 5.0, 25.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @rule()
    def the_server_restarts(self) -> None:
        self.made.job_run.close()
        self.ledger.close()
        self.start()

    @invariant()
    def no_exception_has_escaped(self) -> None:
        assert self.faults.messages == []

    @invariant()
    def the_adapter_is_a_replay_of_the_accepted_contributions_alone(self) -> None:
        """Also: the chain has no gap, and no round is lost or counts twice."""
        closed = queries.closed_rounds(self.ledger, "job")
        attempts = {made.index: made for made in queries.attempts_of(self.ledger, "job") if made.state == "aggregated"}
        assert [done.index for done in closed] == list(range(len(closed)))
        assert len(closed) >= len(self.replayed)
        for done in closed[len(self.replayed) :]:
            self.replay_round(done, attempts[done.index].attempt, attempts[done.index].plan)
        theta = self.replayed[-1][1] if self.replayed else self.model.initial_adapter()
        assert np.array_equal(self.made.job_run.chain.theta, theta)

    def replay_round(self, done: Any, attempt: int, plan: RoundPlan) -> None:
        initial = self.model.initial_adapter()
        previous = self.replayed[-2][1] if len(self.replayed) > 1 else initial
        sha256, theta, mean_square = self.replayed[-1] if self.replayed else (adapter_sha256(initial), initial, None)
        before = None
        if self.replayed:
            before = self.replayed[-2][0] if len(self.replayed) > 1 else adapter_sha256(initial)
        assert done.base_sha256 == sha256
        reports = {
            name: TakenReport(report.scalars, report.examples)
            for (index, number, name), report in sorted(self.taken.items(), key=lambda item: item[0][2])
            if (index, number) == (done.index, attempt)
        }
        assert len(reports) >= self.job.min_reports
        counted = [
            report.device for report in queries.counted_reports(self.ledger, "job") if report.index == done.index
        ]
        assert counted == list(reports)
        made = aggregate(
            self.model.manifest.parameters, self.job, done.index, plan, RoundBase(sha256, before, mean_square), reports
        )
        result = replay(theta, made.log, previous if before is not None else None)
        assert adapter_sha256(result) == done.result_sha256
        self.replayed.append((done.result_sha256, result, made.mean_square))
        type(self).closed_in_all += 1

    @invariant()
    def an_excluded_device_is_offered_nothing(self) -> None:
        """The server works with the exclusions that follow from its ledger, before and after a restart."""
        shown = job_shown(self.ledger, "job")["excluded"]
        assert self.made.job_run.excluded == shown
        offers = queries.offers_of(self.ledger, "job")
        for name in shown:
            assert [offer.state for offer in offers if offer.device == name][-1] == "refused"

    def teardown(self) -> None:
        logging.getLogger("server").removeHandler(self.faults)
        self.made.job_run.close()
        self.ledger.close()
        shutil.rmtree(self.root)


def run(bundle: Bundle, job: Job, examples: int = 20) -> int:
    """Run the machine on a job; return the rounds that were closed and replayed, over all its examples."""
    machine = type("Rounds", (Rounds,), {"model": bundle, "job": job, "closed_in_all": 0})
    few = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=few)
    return int(machine.closed_in_all)  # type: ignore[attr-defined]


@pytest.mark.parametrize("job", [OWN, SHARED], ids=["directions of their own", "shared directions"])
def test_any_order_of_events_and_bad_devices(leveled: Bundle, job: Job) -> None:
    assert run(leveled, job) >= 20


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", [OWN, SHARED], ids=["directions of their own", "shared directions"])
def test_any_order_of_events_and_bad_devices_at_length(leveled: Bundle, job: Job) -> None:
    assert run(leveled, job, examples=200) >= 200
