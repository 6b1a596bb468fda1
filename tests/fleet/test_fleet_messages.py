"""Agent and coordinator, message by message, in-process transport and real HTTP: what goes wrong, and heals."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import JOB, RULE, Bench, ScriptedDevice, bench_of, coordinator, drain, good_report, run_with, sync, talk

from edge_runtime.agent.agent import Finished
from edge_runtime.agent.announcer import lost_will
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.forward_only.replay import replay
from edge_runtime.network.in_process import matches
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.plans import AdapterRef, Plan, TrainPlan
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused, RoundReport, Synced
from edge_runtime.protocol.round_log import encode_chain, pack_scalars
from edge_runtime.protocol.topics import topic_for
from server.errors import JobError
from server.rounds.aggregate import aggregate
from server.storage import queries
from server.storage.adapters import RoundBase
from server.storage.records import RoundPlan, TakenReport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def test_a_device_follows_the_log_to_the_servers_bits(bench: Bench) -> None:
    reference, theta, log = bench.next_adapter()
    reports, finished = talk(bench, [sync(bench, reference)])
    assert finished == Finished("job", adapter_sha256(theta))
    assert isinstance(reports[-1], Synced)
    assert reports[-1].blob_bytes == log.size_bytes
    assert bench.store.adapter_file(reference.file.sha256).read_bytes() == theta.tobytes()


def test_a_log_that_leads_elsewhere_is_healed_by_the_file(bench: Bench) -> None:
    reference, theta, _ = bench.next_adapter()
    other = bench.first_round({"pi": TakenReport(pack_scalars(np.array([9.0, 9.0], np.float32)), 1)})
    lie = msgspec.structs.replace(other, result_sha256=reference.file.sha256)
    wrong = AdapterRef(reference.file, bench.blobs.add(encode_chain([lie])), reference.log_base_sha256)
    reports, finished = talk(bench, [sync(bench, wrong)])
    assert finished == Finished("job", adapter_sha256(theta))
    assert reports[-1].blob_bytes > reference.file.size_bytes


def test_an_adapter_damaged_on_disk_is_fetched_again(bench: Bench) -> None:
    reference, theta, _ = bench.next_adapter()
    talk(bench, [sync(bench, reference)])
    path = bench.store.adapter_file(reference.file.sha256)
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    _, finished = talk(bench, [sync(bench, reference)])
    assert finished == Finished("job", adapter_sha256(theta))
    assert path.read_bytes() == theta.tobytes()


def test_a_bundle_damaged_on_disk_is_mended(bench: Bench) -> None:
    reference, theta, _ = bench.next_adapter()
    talk(bench, [sync(bench, reference)])
    folder = bench.store.bundles / bench.bundle.sha256
    weights = folder / bench.bundle.manifest.weights_file
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    (folder / "graphs" / "stray").write_bytes(b"x")
    _, finished = talk(bench, [sync(bench, reference)])
    assert finished == Finished("job", adapter_sha256(theta))
    verify_files(open_bundle(folder))


def test_a_device_does_not_work_past_the_deadline(bench: Bench) -> None:
    plan = bench.train_plan(bench.initial(), steps=200, deadline_s=1e-6)
    reports, _ = talk(bench, [plan, sync(bench, bench.initial(), 0)])
    assert [type(report) for report in reports] == [PlanAccepted, Synced]


def test_the_same_plan_again_is_answered_without_training(bench: Bench) -> None:
    plan = bench.train_plan(bench.initial())
    reports, _ = talk(bench, [plan, plan, sync(bench, bench.initial(), 0)])
    sent = [report for report in reports if isinstance(report, RoundReport)]
    assert len(sent) == 2
    assert sent[0] == sent[1]  # also the measured seconds: it is the journal's report
    after_restart, _ = talk(bench, [plan, sync(bench, bench.initial(), 0)])
    # Once with the new connection, because no server has acknowledged it, and once for the plan.
    assert [report for report in after_restart if isinstance(report, RoundReport)] == sent[:1] * 2


def test_a_newer_plan_ends_the_older_one(bench: Bench) -> None:
    plans: list[Plan] = [bench.train_plan(bench.initial(), round=index) for index in range(3)]
    reports, _ = talk(bench, [*plans, sync(bench, bench.initial(), 3)])
    assert [type(report) for report in reports] == [Synced]


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        ("data", 4, "line 13"),
        ("split", 5, "no front graph at split 7"),
        ("bundle", 7, "answered 404"),
        ("rate", 9, "not finite"),
    ],
)
def test_a_plan_that_cannot_be_done_is_refused_with_a_reason(bench: Bench, spoil: str, code: int, message: str) -> None:
    plan = bench.train_plan(bench.initial())
    if spoil == "data":
        with (bench.root / "data.jsonl").open("a") as file:
            file.write('{"text": "", "label": "good"}\n')
    elif spoil == "split":
        plan = msgspec.structs.replace(plan, split=7)
    elif spoil == "bundle":
        plan = msgspec.structs.replace(plan, bundle_sha256="0" * 64)
    else:
        rule = msgspec.structs.replace(RULE, learning_rate=1e3, normalize="none", eps=1.0)
        theta = (bench.bundle.initial_adapter() + np.float32(3e38)).astype(np.float32)
        file_ref = bench.blobs.add(theta.tobytes())
        plan = msgspec.structs.replace(plan, rule=rule, adapter=AdapterRef(file_ref, None, None))
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    agent = bench.agent()
    bench.hub.publish(bench.topic("plan"), b"noise", retain=False)
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    refused: list[PlanRefused] = []

    def seen() -> bool:
        refused.extend(report for report in drain(server) if isinstance(report, PlanRefused))
        return bool(refused)

    agent.run(should_stop=seen)
    assert refused[0].code == code
    assert message in refused[0].message


def test_a_device_that_vanishes_leaves_its_will(bench: Bench) -> None:
    transport = bench.hub.join(lost_will(bench.config, "boot"))
    watcher = bench.hub.join()
    watcher.subscribe(topic_for("default", "+", "state"))
    transport.vanish()
    messages = [event for event in iter(lambda: watcher.receive(0), None) if isinstance(event, Message)]
    assert decode_message(messages[-1].payload, DeviceState).state == "lost"
    late = bench.hub.join()
    late.subscribe(bench.topic("state"))
    retained = [event for event in iter(lambda: late.receive(0), None) if isinstance(event, Message)]
    assert [m.payload for m in retained] == [messages[-1].payload]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/b", "a/b", True),
        ("a/b/c", "a/b", False),
        ("+/+/+", "a/b/c", True),
        ("a/c", "a/b", False),
    ],
)
def test_topic_filters(topic_filter: str, topic: str, *, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


# -- the coordinator, with devices made of messages -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scalars": b"\0" * 4}, "bytes of scalars"),
        ({"scalars": pack_scalars(np.array([np.nan, 1], np.float32))}, "not finite"),
        ({"scalars": pack_scalars(np.array([3e38, 1], np.float32))}, "not finite or above"),
        ({"adapter_sha256": "0" * 64}, "trained adapter 000000000000"),
        ({"loss": float("inf")}, "not finite"),
    ],
    ids=["short", "nan", "huge", "adapter", "loss"],
)
def test_an_invalid_report_is_refused_and_the_round_goes_on(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    bad = ScriptedDevice(bench, "bad", lambda plan: [good_report(plan, "bad", **changes)])
    good = ScriptedDevice(bench, "good", lambda plan: [good_report(plan, "good")])
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2)) as (made, ledger):
        assert run_with(made, [bad, good])
        bad.turn()
        assert {ack.outcome for ack in bad.acks} == {"invalid"}
        assert reason in bad.acks[0].reason
        offers = queries.offers_of(ledger, "job")
        assert [(offer.device, offer.state) for offer in offers] == [("bad", "refused"), ("good", "reported")] * 2


def test_reports_for_others_and_for_other_rounds_change_nothing(bench: Bench) -> None:
    def answer(plan: TrainPlan) -> list[Any]:
        return [
            good_report(plan, "good"),
            good_report(plan, "good", scalars=b"\0" * 8),
            good_report(plan, "good", round=7),
            good_report(plan, "good", attempt=3),
            good_report(plan, "somebody"),
            good_report(plan, "good", job="another"),
        ]

    device = ScriptedDevice(bench, "good", answer)
    with coordinator(bench, JOB) as (made, ledger):
        assert run_with(made, [device])
        device.turn()
        assert len(queries.offers_of(ledger, "job")) == 2
        final = queries.closed_rounds(ledger, "job")[-1].result_sha256
    assert [ack.outcome for ack in device.acks].count("taken") == 2
    assert {ack.outcome for ack in device.acks} <= {"taken", "duplicate", "unknown", "late"}
    theta = bench.bundle.initial_adapter()
    mean_square = None
    for index in range(2):
        reports = {"good": TakenReport(pack_scalars(np.array([0.5, 1.0], np.float32)), 5)}
        plan = RoundPlan(2, JOB.rule_of(index))
        base = RoundBase(adapter_sha256(theta), None, mean_square)
        result = aggregate(bench.bundle.manifest.parameters, JOB, index, plan, base, reports)
        theta, mean_square = replay(theta, result.log), result.mean_square
    assert adapter_sha256(theta) == final


def test_a_round_without_enough_reports_is_tried_again_and_then_given_up(bench: Bench) -> None:
    def accept_only(plan: TrainPlan) -> list[Any]:
        return [PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device="pi")]

    device = ScriptedDevice(bench, "pi", accept_only)
    with coordinator(bench, msgspec.structs.replace(JOB, max_attempts=3, deadline_s=0.1)) as (made, ledger):
        with pytest.raises(JobError, match="fewer than 1 reports in 3 attempts") as caught:
            run_with(made, [device])
        assert "3 of 3 offers had no report at the deadline: raise deadline_s" in caught.value.hint
        assert [attempt.state for attempt in queries.rounds_of(ledger, "job")] == ["abandoned"] * 3
        entered = queries.find_job(ledger, "job")
        assert entered is not None
        assert entered.state == "failed"


def test_a_deadline_ends_a_round(bench: Bench) -> None:
    """The clock is the test's: one device never answers, and costs its report only."""
    now = [0.0]
    silent = ScriptedDevice(bench, "silent", lambda _plan: [])

    def answer(plan: TrainPlan) -> list[Any]:
        now[0] += plan.deadline_s / 2
        return [good_report(plan, "good")]

    good = ScriptedDevice(bench, "good", answer)
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2, accept_s=1e9), lambda: now[0]) as (
        made,
        ledger,
    ):
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(made.run()))
        thread.start()
        while thread.is_alive():
            good.turn()
            silent.turn()
            now[0] += 1.0
            thread.join(0.01)
        assert done == [True]
        states = [offer.state for offer in queries.offers_of(ledger, "job")]
        assert sorted(states) == ["offered"] * 2 + ["reported"] * 2
