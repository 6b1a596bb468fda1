"""One message never ends a side: bombs and random bytes on every topic, for a server and for a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bench import JOB, Bench, ScriptedDevice, bench_of, coordinator, drain, good_report, run_with, sync
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import NetworkError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.reports import PlanRefused, Synced
from edge_runtime.protocol.topics import Kind
from server.rounds.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.agent.agent import Agent
    from edge_runtime.bundle.folder import Bundle

BOMB = b"\x82\xa1v\x04\xa4junk" + b"\x91" * 5000 + b"\x00"
TO_SERVER: tuple[Kind, ...] = ("birth", "state", "profile", "report")
TO_DEVICE: tuple[Kind, ...] = ("plan", "report/ack")


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def run_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> str:
    """Run a job with one good device to its end; return the log."""
    device = ScriptedDevice(bench, "phone", lambda plan: [good_report(plan, "phone")])
    with coordinator(bench, JOB) as (made, _):
        assert run_with(made, [device])
        assert set(made.devices) <= {"phone", "ghost"}
    return caplog.text


def test_retained_bombs_on_every_topic_do_not_end_a_server(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for kind in TO_SERVER:
        for device in ("ghost", "phone"):
            bench.hub.publish(bench.topic(kind, device), BOMB, retain=kind != "report")
        for name in ("\x1b[2J", "a b", "", "x" * 100, "pi\n"):
            bench.hub.publish(f"covey/v1/default/{name}/{kind}", BOMB, retain=True)
    log = run_job(bench, caplog)
    assert "nests too deeply" in log
    assert "cannot be the name" in log


def test_a_fault_in_taking_a_message_is_logged_and_the_job_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise KeyError("boom")

    monkeypatch.setattr(Roster, "take_profile", fail)
    bench.hub.publish(bench.topic("profile", "ghost"), b"x", retain=True)
    log = run_job(bench, caplog)
    assert "by a fault of Covey; please report it" in log
    assert "KeyError" in log


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.tuples(st.sampled_from(TO_SERVER), st.binary(max_size=80)), max_size=20))
def test_random_bytes_do_not_end_a_server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    messages: list[tuple[Kind, bytes]],
) -> None:
    with bench_of(tmp_path_factory.mktemp("server"), tiny_bundle) as bench:
        for kind, payload in messages:
            bench.hub.publish(bench.topic(kind, "ghost"), payload, retain=kind != "report")
        run_job(bench, caplog)


def synced(bench: Bench, agent: Agent, messages: list[tuple[Kind, bytes]]) -> list[Any]:
    """Give an agent messages and then a sync; return what it reports."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    for kind, payload in messages:
        bench.hub.publish(bench.topic(kind), payload, retain=False)
    bench.hub.publish(bench.topic("plan"), encode_message(sync(bench, bench.initial())), retain=False)
    finished = [agent.serve_waiting() for _ in range(len(messages) + 2)]
    assert any(finished)
    return drain(server)


def test_bombs_do_not_end_a_device(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    (report,) = synced(bench, bench.agent(), [(kind, BOMB) for kind in TO_DEVICE for _ in range(3)])
    assert isinstance(report, Synced)
    assert caplog.text.count("nests too deeply") == 6


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.tuples(st.sampled_from(TO_DEVICE), st.binary(max_size=80)), max_size=20))
def test_random_bytes_do_not_end_a_device(bench: Bench, messages: list[tuple[Kind, bytes]]) -> None:
    assert isinstance(synced(bench, bench.agent(), messages)[-1], Synced)


def refusal(bench: Bench, **changes: Any) -> PlanRefused:
    """Give a new agent one plan, which it refuses."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    agent = bench.agent()
    plan = bench.train_plan(bench.initial(), **changes)
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    for _ in ("the connection", "the plan"):
        agent.serve_waiting()
    refused = drain(server)[-1]
    assert isinstance(refused, PlanRefused)
    return refused


@pytest.mark.parametrize("server", ["[::1:8080", "server/früh", "server..local"])
def test_an_address_that_is_none_is_a_refusal_with_its_kind(bench: Bench, server: str) -> None:
    refused = refusal(bench, blob_url=f"http://{server}/blobs")
    assert refused.code == NetworkError.exit_code
    assert "is not an http address" in refused.message


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("private words"), 70, "this is a fault of Covey (KeyError)"),
        (RecursionError("private words"), 70, "this is a fault of Covey (RecursionError)"),
        (MemoryError(), 9, "too little free memory"),
        (OSError(24, "Too many open files"), 8, "no file descriptor left"),
        (FileNotFoundError(2, "No such file or directory", "/state/adapters"), 8, "/state/adapters: No such file"),
    ],
)
def test_any_exception_within_a_plan_is_a_refusal_with_its_kind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr("edge_runtime.agent.trainer.Trainer.train", fail)
    refused = refusal(bench)
    assert refused.code == code
    assert words in refused.message
    assert "private" not in refused.message
