"""A device sends its last report until the server acknowledges it, also one that was down; nothing is trained twice."""

from __future__ import annotations

import itertools
import json
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import JOB, Bench, ScriptedDevice, bench_of, coordinator, drain, good_report
from fleets import Fleet, has_mosquitto, mosquitto, wait_for, write_job

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.last_report import FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSES_TO_SAY_SO
from edge_runtime.device.machine import Machine, this_machine
from edge_runtime.network.transport import Connected
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import TrainPlan
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.reports import DeltaReport, PlanRefused, ReportAck, RoundReport
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.store.journal import JOURNAL_FILE
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.in_process import InProcessTransport


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class Device:
    """An agent whose clock the test moves, and a server that only listens."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.now = bench, 0.0
        self.server = bench.hub.join()
        self.server.subscribe(bench.topic("report"))
        self.trained = 0
        self.start()

    def start(self) -> None:
        gate = this_machine(self.bench.config.eligibility, self.bench.store.root).gate
        self.transport: InProcessTransport = self.bench.hub.join()
        machine = Machine(gate, clock=lambda: self.now)
        self.agent = Agent(self.bench.config, self.bench.store, self.transport, "boot", machine=machine)
        train = self.agent._trainer.train

        def counted(*arguments: Any) -> Any:
            self.trained += 1
            return train(*arguments)

        self.agent._trainer.train = counted  # type: ignore[method-assign]

    def restart(self) -> list[Any]:
        self.transport.close()
        self.start()
        return self.turns()

    def turns(self, n: int = 4) -> list[Any]:
        """Let the agent handle what has arrived; return what it reports."""
        for _ in range(n):
            self.agent.serve_waiting()
        return [report for report in drain(self.server) if isinstance(report, (RoundReport, DeltaReport, PlanRefused))]

    def plan(self, plan: TrainPlan) -> list[Any]:
        self.bench.hub.publish(self.bench.topic("plan"), encode_message(plan), retain=False)
        return self.turns()

    def hello(self, epoch: str) -> list[Any]:
        message = encode_message(Hello(epoch=epoch, covey_version="0"))
        self.bench.hub.publish(hello_topic("default"), message, retain=True)
        return self.turns()

    def ack(self, outcome: Any, **changes: Any) -> list[Any]:
        made = ReportAck(job="job", round=0, attempt=0, outcome=outcome)
        message = encode_message(msgspec.structs.replace(made, **changes))
        self.bench.hub.publish(self.bench.topic("report/ack"), message, retain=False)
        return self.turns()

    def resends_within(self, seconds: float) -> list[float]:
        """Pass time; return the moments at which a report was sent."""
        begun, sent = self.now, []
        while self.now - begun < seconds:
            self.now += 1.0
            sent += [self.now] * len(self.turns(1))
        return sent


@pytest.fixture
def device(bench: Bench) -> Device:
    made = Device(bench)
    assert len(made.plan(bench.train_plan(bench.initial()))) == 1
    return made


def test_a_report_is_sent_again_with_growing_pauses(device: Device) -> None:
    sent = [0.0, *device.resends_within(3 * LONGEST_PAUSE_S)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert pauses == [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**n) for n in range(len(pauses))]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert device.trained == 1


@pytest.mark.parametrize("outcome", ["taken", "duplicate", "late", "unknown", "invalid"])
def test_an_acknowledged_report_is_not_sent_again(device: Device, outcome: str) -> None:
    assert device.ack(outcome) == []
    assert device.hello("one") == []
    assert device.resends_within(LONGEST_PAUSE_S) == []
    assert device.restart() == []


@pytest.mark.parametrize("changes", [{"job": "other"}, {"round": 1}, {"attempt": 1}])
def test_an_acknowledgement_of_another_report_ends_nothing(device: Device, changes: dict[str, Any]) -> None:
    device.ack("taken", **changes)
    assert len(device.hello("one")) == 1


def test_each_epoch_each_connection_and_each_start_send_it_again(device: Device) -> None:
    assert len(device.hello("one")) == 1
    assert device.hello("one") == []
    assert len(device.hello("two")) == 1
    device.transport.deliver(Connected())
    assert len(device.turns()) == 1
    assert len(device.restart()) >= 1
    device.ack("taken")
    device.transport.deliver(Connected())
    assert device.turns() == []
    assert device.trained == 1


def test_nothing_is_sent_again_without_a_connection(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published then waits in a queue: it would be there several times."""
    monkeypatch.setattr(type(device.transport), "local_address", None)
    assert device.resends_within(LONGEST_PAUSE_S) == []


def test_the_log_says_once_what_may_keep_the_acknowledgement_away(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        device.resends_within(FIRST_PAUSE_S * 2.0**PAUSES_TO_SAY_SO)
        device.resends_within(3 * LONGEST_PAUSE_S)
    said = [record.getMessage() for record in caplog.records if "not acknowledged" in record.getMessage()]
    assert len(said) == 1
    assert "report of round 0" in said[0]
    assert device.bench.topic("report/ack") in said[0]


def test_a_journal_with_a_report_of_another_version_is_left_alone(device: Device) -> None:
    journal = device.bench.store.journal()
    device.bench.store.write_journal(msgspec.structs.replace(journal, report=b"\x81\xa1v\x01"))
    assert device.restart() == []
    assert device.bench.store.journal().acknowledged


def test_a_report_sent_while_the_server_was_down_is_taken_when_it_is_back(bench: Bench) -> None:
    """The broker has acknowledged the report, and no server was there to take it."""
    plans = bench.hub.join()
    plans.subscribe(bench.topic("plan"))
    job = msgspec.structs.replace(JOB, rounds=1)
    device = Device(bench)

    def until(condition: Callable[[], bool]) -> Callable[[], bool]:
        def turn() -> bool:
            if condition():
                return True
            device.agent.serve_waiting()
            return False

        return turn

    with coordinator(bench, job) as (made, _):
        assert not made.run(until(lambda: bool(made.job_run._open)))  # killed once the round is open
        made.coordinator._services.transport.close()
    assert device.trained == 0
    (report,) = device.turns()
    assert device.trained == 1
    with coordinator(bench, job) as (made, ledger):
        assert made.resumed
        assert made.run(until(lambda: False))
        taken = queries.offers_of(ledger, "job")
    assert device.trained == 1
    assert [(offer.attempt, offer.state) for offer in taken] == [(0, "reported")]
    assert report.scalars
    assert bench.store.journal().acknowledged


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"attempt": 0}, "late", ""),
        ({"job": "earlier"}, "unknown", "no job earlier is at work"),
        ({"round": 7}, "unknown", ""),
        ({}, "taken", ""),
    ],
    ids=["older attempt", "other job", "later round", "the open one"],
)
def test_the_server_answers_whatever_report_comes(
    bench: Bench, changes: dict[str, Any], outcome: str, reason: str
) -> None:
    """A report that gets no answer would be sent for ever."""
    acks: list[ReportAck] = []

    def answer(plan: TrainPlan) -> list[Any]:
        if plan.attempt == 0:
            return [PlanRefused(job="job", round=0, attempt=0, device="pi", code=9, message="no")]
        return [good_report(plan, "pi", **changes)]

    device = ScriptedDevice(bench, "pi", answer)
    ticks = iter(range(10**9))
    job = msgspec.structs.replace(JOB, rounds=1, max_attempts=9, deadline_s=1e7, accept_s=1e6)
    with coordinator(bench, job, lambda: next(ticks) * 5.0) as (made, _):

        def turn() -> bool:
            device.turn()
            acks[:] = device.acks
            return bool(acks)

        made.run(turn)
    assert [(ack.outcome, ack.reason) for ack in acks[:1]] == [(outcome, reason)]


@pytest.mark.mosquitto
@pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_report_sent_while_the_server_was_killed_is_taken_and_nothing_is_trained_twice(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    """Real processes, and a broker that outlives the server: it acknowledges the report, and keeps it for nobody."""
    with mosquitto(tmp_path / "mosquitto") as port:
        fleet = Fleet(tmp_path, tiny_bundle, port, external=True)
        path = tmp_path / "pi" / "covey-state" / JOURNAL_FILE

        def journal() -> dict[str, Any]:
            return dict(json.loads(path.read_bytes())) if path.is_file() else {}

        try:
            job = write_job(tmp_path, rounds=1, steps=200, deadline_s=500.0)
            server, device = fleet.serve(job), fleet.device("pi", 0)
            wait_for(lambda: journal().get("begun"), "a plan that is being trained")
            server.popen.kill()
            server.popen.wait(60)
            assert journal()["report"] is None, "the device was faster than the kill"
            wait_for(lambda: journal()["report"], "a report")
            assert not journal()["acknowledged"]
            again = fleet.serve(job)
            result = again.result()
            assert device.result()["adapter_sha256"] == result["adapter_sha256"]
            assert journal()["acknowledged"]
            assert device.stderr.read_text().count("round 0: loss") == 1
            kinds = [event["event"] for event in again.events()]
            assert "round_abandoned" not in kinds
            assert kinds.count("report") == 1
        finally:
            fleet.stop()
