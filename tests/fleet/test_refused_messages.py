"""Messages that a broker will not take: named before the first round, and given up so that others need not wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from bench import JOB, Bench, ScriptedDevice, bench_of, coordinator, drain, good_report, run_with
from fleets import Fleet, has_mosquitto, mosquitto, write_job

from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.network.address import parse_broker
from edge_runtime.network.message_size import check_size, largest_packet_bytes
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Connected, GivenUp, Message
from edge_runtime.protocol.message_base import ENVELOPE_BYTES
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import TrainPlan
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.reports import PlanRefused, RoundReport
from edge_runtime.protocol.topics import topic_for
from server.job.job import Job, read_job
from server.job.largest_message import largest_message_bytes
from server.web.broker import open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

LISTENER = "listener {port} 127.0.0.1\nallow_anonymous true\n"
PROBE = topic_for("default", "covey-check", "probe")


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def tried(port: int, size_bytes: int) -> str | None:
    address = parse_broker(f"mqtt://127.0.0.1:{port}")
    cause = check_size(address, "covey-check", None, topic=PROBE, size_bytes=size_bytes)
    assert cause is None or cause.kind == "oversize"
    return None if cause is None else cause.finding


@pytest.mark.parametrize(
    ("limit", "words"),
    [("max_packet_size 20000\n", "its limit is 20000 bytes"), ("message_size_limit 20000\n", "its limit is not known")],
)
@pytest.mark.mosquitto
@pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
def test_a_limit_is_found_before_anything_depends_on_it(tmp_path: Path, limit: str, words: str) -> None:
    with mosquitto(tmp_path / "mosquitto", LISTENER + limit) as port:
        assert tried(port, 15_000) is None
        found = tried(port, 30_000)
        assert found is not None
        assert "takes no message of 30000 bytes" in found
        assert words in found


def test_the_embedded_broker_takes_what_covey_sends() -> None:
    with open_broker("embedded", "127.0.0.1", 0) as address:
        assert tried(address.port, 128 * 1024) is None
        assert tried(address.port, 512 * 1024) is not None


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
def test_a_message_that_is_not_taken_is_given_up_and_later_ones_arrive(tmp_path: Path) -> None:
    """Before, 40 reconnects in 90 s with the same message, and later ones waited behind it."""
    with mosquitto(tmp_path / "mosquitto", LISTENER + "max_packet_size 20000\n") as port:
        address = parse_broker(f"mqtt://127.0.0.1:{port}")
        assert largest_packet_bytes(address, "covey-look", None) == 20_000
        listener = MqttTransport(address, "covey-listener", keep_session=False)
        listener.subscribe("covey/v1/default/pi/#")
        listener.publish("covey/v1/default/pi/ready", b"x")
        transport = MqttTransport(address, "covey-default-pi", keep_session=False)
        transport.publish("covey/v1/default/pi/state", b"before")
        transport.publish("covey/v1/default/pi/report", bytes(60_000))
        for number in range(30):  # more than may be in flight at once
            transport.publish("covey/v1/default/pi/state", b"after %d" % number)
        connections = 0
        while not isinstance(event := transport.receive(60.0), GivenUp):
            assert event is not None
            connections += isinstance(event, Connected)
        assert 3 <= connections <= 5
        assert (event.topic, len(event.payload)) == ("covey/v1/default/pi/report", 60_000)
        assert "closed the connection 3 times at this message of 60000 bytes; its limit is 20000 bytes" in event.finding
        assert "max_packet_size" in event.remedy
        wanted = {b"x", b"before", *(b"after %d" % number for number in range(30))}
        while wanted:
            came = listener.receive(60.0)
            assert came is not None, wanted
            if isinstance(came, Message):
                wanted.discard(came.payload)
        transport.close()
        listener.close()


@pytest.mark.mosquitto
@pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
def test_a_job_that_the_broker_cannot_carry_does_not_begin(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with mosquitto(tmp_path / "mosquitto", LISTENER + "max_packet_size 3000\n") as port:
        fleet = Fleet(tmp_path, tiny_bundle, port, external=True)
        try:
            server = fleet.serve(write_job(fleet.root))
            assert server.popen.wait(90) == 7
            error = server.events()[-1]
            assert "the messages of job job are too large" in error["error"]
            assert "its limit is 3000 bytes" in error["error"]
            assert "max_packet_size" in error["hint"]
        finally:
            fleet.stop()


# -- what both sides make of it -------------------------------------------------------------------------------------

FINDING = "host:1883 has closed the connection 3 times at this message of 9 bytes; its limit is 8 bytes"


def test_a_device_refuses_the_plan_whose_report_was_given_up_and_does_not_try_again(bench: Bench) -> None:
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    agent = bench.agent()
    plan = encode_message(bench.train_plan(bench.initial()))
    agent.serve_waiting()
    bench.hub.publish(bench.topic("plan"), plan, retain=False)
    agent.serve_waiting()
    report = drain(server)[-1]
    assert isinstance(report, RoundReport)
    agent._transport.deliver(GivenUp(bench.topic("report"), encode_message(report), FINDING, "raise it"))  # type: ignore[attr-defined]
    agent.serve_waiting()
    bench.hub.publish(bench.topic("plan"), plan, retain=False)
    agent.serve_waiting()
    refusals = drain(server)
    assert len(refusals) == 2
    for refused in refusals:
        assert isinstance(refused, PlanRefused)
        assert (refused.code, FINDING in refused.message) == (7, True)
    for topic in ("state", "profile"):
        agent._transport.deliver(GivenUp(bench.topic(topic), b"x", FINDING, "raise it"))  # type: ignore[attr-defined, arg-type]
        agent.serve_waiting()


def test_a_server_leaves_out_the_device_whose_plan_was_given_up(bench: Bench) -> None:
    """The device never sees its plan; the round does not wait for it."""
    good = ScriptedDevice(bench, "good", lambda plan: [good_report(plan, "good")])
    deaf = ScriptedDevice(bench, "deaf", lambda _plan: [])
    job = msgspec.structs.replace(JOB, rounds=1, min_devices=2, accept_s=1e6, deadline_s=1e6)
    with coordinator(bench, job) as (made, _):
        server = made.coordinator._services.transport

        def give_up(plan: TrainPlan) -> list[RoundReport]:
            event = GivenUp(bench.topic("plan", "deaf"), encode_message(plan), FINDING, "raise it")
            server.deliver(event)  # type: ignore[attr-defined]
            return []

        deaf.answer = give_up
        for payload in (b"x", encode_message(Hello(epoch="e", covey_version="0"))):
            server.deliver(GivenUp(bench.topic("plan", "deaf"), payload, FINDING, "raise it"))  # type: ignore[attr-defined]
        server.deliver(GivenUp(bench.topic("report/ack", "deaf"), b"x", FINDING, "raise it"))  # type: ignore[attr-defined]
        assert run_with(made, [good, deaf])
        rest = made.coordinator.devices["deaf"].rest
    assert rest is not None
    assert rest.reason == FINDING


def test_the_largest_message_is_an_upper_bound(tmp_path: Path, bench: Bench) -> None:
    job = read_job(write_job(tmp_path, steps=100, batch_size=4))
    assert largest_message_bytes(job) > 4 * 100 * job.step.scalars_per_step
    small = Job(name="x" * 63, eval_file="unused")
    plan = bench.train_plan(bench.initial(), job=small.name, blob_url="http://" + "h" * 250 + ":8080/blobs")
    birth = ScriptedDevice(bench, "d" * 63, lambda _plan: []).birth
    needs = [LevelNeed(level, 2**40, 2**40) for level in range(1, 65)]
    capability = msgspec.structs.replace(birth.capability, kind="backprop", levels=needs)
    for message in (plan, msgspec.structs.replace(birth, capability=capability, hostname="h" * 255)):
        assert len(encode_message(message)) + ENVELOPE_BYTES <= largest_message_bytes(small)
