"""Requests for predictions over MQTT, with a real agent and a real model on a hub: floods, forgeries, repetitions."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import Bench, bench_of
from fleets import wait_for, write_job
from hypothesis import given
from hypothesis import strategies as st
from predicting import leave_model
from signing import fleet_of, key_of

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.predict_requests import MOST_WAITING, REFUSALS_PER_MINUTE, PredictRequests
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import NetworkError, ProtocolError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.predictions.rules import PredictRules
from edge_runtime.predictions.service import Ask, PredictionService
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.predictions import MOST_ANSWER_BYTES, Predict, Predicted
from edge_runtime.protocol.presence import Birth, Hello
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic, topic_for
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Reason
from server.fleet.predict_requests import MOST_WAITING as MOST_ASKED
from server.fleet.predict_requests import PredictRequests as Asker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Fleet

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.in_process import InProcessTransport

PRIVATE = "a text that only its asker knows"
WAIT_S = 60.0


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def request(number: int = 0, text: Any = PRIVATE, **more: Any) -> Predict:
    return Predict(request=str(number), patience_s=WAIT_S, body=json.dumps({"text": text, **more}).encode())


class Slow:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def predict(self, ask: Ask) -> dict[str, Any]:
        self.begun.release()
        assert self.may.acquire(timeout=WAIT_S)
        if ask.texts == ["fault"]:
            raise KeyError(PRIVATE)
        return {"texts": ask.texts, "again": ask.texts}


class Requests:
    """A device's requests; the test's clock stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.service = Slow()
        self.sent: queue.SimpleQueue[Predicted] = queue.SimpleQueue()
        self.requests = PredictRequests("pi", self.service, self._publish, lambda: self.now)

    def _publish(self, payload: bytes) -> None:
        self.sent.put(decode_message(payload, Predicted))

    def take(self, *requests: Predict) -> None:
        for one in requests:
            self.requests.take(encode_message(one))

    def answers(self, count: int) -> list[Predicted]:
        return [self.sent.get(timeout=WAIT_S) for _ in range(count)]


def test_a_flood_is_refused_without_waiting_and_not_answered_for_ever() -> None:
    device = Requests()
    device.take(request(0))
    assert device.service.begun.acquire(timeout=WAIT_S)  # it is at work, and holds the model
    flood = [request(number) for number in range(1, 5000)]
    began = time.monotonic()
    device.take(*flood)
    assert time.monotonic() - began < WAIT_S  # nothing of it waits for the answer that is not let go
    refused = device.answers(REFUSALS_PER_MINUTE)
    assert {(one.code, one.body) for one in refused} == {(7, b"")}
    assert "pi is busy" in refused[0].what
    assert [one.request for one in refused][:2] == [str(MOST_WAITING + 1), str(MOST_WAITING + 2)]
    device.service.may.release(1 + MOST_WAITING)
    answered = device.answers(1 + MOST_WAITING)
    assert [one.request for one in answered] == [str(number) for number in range(1 + MOST_WAITING)]  # in order
    assert device.sent.empty()
    device.now += 60.0
    device.service.may.release()
    device.take(request(6000))
    assert device.answers(1)[0].code == 0


def test_a_repetition_is_answered_once_and_one_that_nobody_waits_for_not_at_all() -> None:
    device = Requests()
    device.take(request(0), request(1), request(1), msgspec.structs.replace(request(2), patience_s=1.0), request(3))
    assert device.service.begun.acquire(timeout=WAIT_S)
    device.now = 2.0
    device.service.may.release(10)
    assert [one.request for one in device.answers(3)] == ["0", "1", "3"]
    assert device.sent.empty()


def test_what_fails_is_one_requests_failure_and_no_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    device = Requests()
    device.service.may.release(10)
    with caplog.at_level(logging.DEBUG):
        device.take(request(0, "fault"))
        (fault,) = device.answers(1)
        device.take(Predict(request="1", patience_s=1.0, body=b'{"txt": "x"}'))
        (wrong,) = device.answers(1)
        device.take(Predict(request="2", patience_s=1.0, body=b"[" * 90_000))
        (nested,) = device.answers(1)
        device.take(request(3, "x" * 70_000))
        (large,) = device.answers(1)
        device.take(request(4))
        assert device.answers(1)[0].code == 0
    assert (fault.code, PRIVATE in fault.what + fault.hint) == (70, False)
    assert (wrong.code, "unknown field `txt`" in wrong.what) == (4, True)
    assert nested.code == 4
    assert (large.code, f"{MOST_ANSWER_BYTES} fit" in large.what) == (4, True)
    assert PRIVATE not in caplog.text
    assert "failed at test_predict_requests.py" in caplog.text


@given(st.binary(max_size=300))
def test_what_is_no_request_is_said(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(payload, Predict)


# -- a real agent, a real model -------------------------------------------------------------------------------------


def answering(bench: Bench, transport: Any = None, boot: str = "boot", texts_per_minute: int = 600) -> Agent:
    """Return an agent that answers the server with the bench's model."""
    store = leave_model(bench.root / "state", bench.bundle)
    rules = PredictRules(answer_server=True, texts_per_minute=texts_per_minute)
    config = msgspec.structs.replace(bench.config, predict=rules)
    agent = Agent(config, store, bench.hub.join() if transport is None else transport, boot)
    agent.answer_with(PredictionService(store, config.data, Engines(threads=1), rules, lambda: None, time.monotonic))
    return agent


def say_hello(bench: Bench, epoch: str) -> None:
    hello = Hello(epoch=epoch, covey_version="0")
    bench.hub.publish(hello_topic("default"), encode_message(hello), retain=True)


def test_an_agent_announces_that_it_answers_and_does(bench: Bench) -> None:
    server = bench.hub.join()
    server.subscribe(bench.topic("birth"))
    server.subscribe(bench.topic("predicted"))
    say_hello(bench, "e")
    agent = answering(bench, texts_per_minute=3)
    for _ in ("connection", "hello"):
        agent.serve_waiting()
    births = [decode_message(event.payload, Birth) for event in messages(server)]
    assert [birth.predicts for birth in births] == [True, True]

    for number in range(3):
        bench.hub.publish(bench.topic("predict"), encode_message(request(number, ["a", "b"])), retain=False)
        agent.serve_waiting()
    answers = [decode_message(message.payload, Predicted) for message in heard(server, 3)]
    first, *others = answers
    found = json.loads(first.body)
    assert [one["text"] for one in found["predictions"]] == ["a", "b"]
    assert found["bundle_sha256"] == bench.bundle.sha256
    assert [(one.code, "3 texts a minute" in one.what) for one in others] == [(7, True)] * 2


def messages(transport: InProcessTransport) -> list[Message]:
    found = []
    while (event := transport.receive(0)) is not None:
        if isinstance(event, Message):
            found.append(event)
    return found


def heard(transport: InProcessTransport, count: int) -> list[Message]:
    found: list[Message] = []
    wait_for(lambda: found.extend(messages(transport)) or len(found) >= count, "messages", WAIT_S)
    return found


def test_an_agent_whose_owner_has_not_allowed_it_neither_announces_nor_answers(bench: Bench) -> None:
    leave_model(bench.root / "state", bench.bundle)
    server = bench.hub.join()
    server.subscribe(bench.topic("birth"))
    server.subscribe(bench.topic("predicted"))
    agent = bench.agent()
    bench.hub.publish(bench.topic("predict"), encode_message(request()), retain=False)
    for _ in range(3):
        agent.serve_waiting()
    (birth,) = messages(server)
    assert "predicts" not in msgspec.msgpack.decode(birth.payload)


def test_forged_and_replayed_requests_are_not_answered(bench: Bench) -> None:
    fleet = fleet_of("pi", "mole")
    inner = bench.hub.join()
    transport = fleet.transport(inner, "pi", "boot-1")
    agent = answering(bench, transport, "boot-1")
    ear = bench.hub.join()
    ear.subscribe(bench.topic("predicted"))
    server = fleet.transport(bench.hub.join(), SERVER, "server-1")
    server.subscribe(bench.topic("state"))
    topic, body = bench.topic("predict"), encode_message(request(1))

    def turns() -> None:
        for _ in range(4):
            agent.serve_waiting()

    server.publish(hello_topic("default"), encode_message(Hello(epoch="e", covey_version="0")), retain=True)
    turns()
    while server.receive(0) is not None:  # the server learns the device's session
        pass
    thief = Signer(SERVER, "default", "server-1", key_of("mole"), lambda: 2**62)
    bench.hub.publish(topic, body, retain=False)
    bench.hub.publish(topic, thief.seal(topic, body, "boot-1"), retain=False)
    turns()
    assert transport.refused == {(SERVER, Reason.UNSIGNED): 1, (SERVER, Reason.FOREIGN): 1}

    recorder = bench.hub.join()
    recorder.subscribe(topic)
    server.publish(topic, body)
    turns()
    (answer,) = heard(ear, 1)
    (recorded,) = messages(recorder)
    bench.hub.publish(topic, recorded.payload, retain=False)
    turns()
    assert transport.refused[SERVER, Reason.DUPLICATE] == 1
    assert messages(ear) == []
    assert PRIVATE.encode() in answer.payload  # the text goes back to its asker


# -- the server's side ----------------------------------------------------------------------------------------------


def test_an_answer_reaches_whoever_asked_and_nobody_elses_does(bench: Bench) -> None:
    now = 0.0
    device = bench.hub.join()
    device.subscribe(bench.topic("predict", "+"))
    asker = Asker(bench.hub.join(), "default", lambda: now)
    waiting = asker.ask("pi", b"{}", 10.0)
    (first,) = messages(device)
    sent = decode_message(first.payload, Predict)
    answer = Predicted(request=sent.request, device="pi", code=0, what="", hint="", body=b"{}")
    for name, forged in (("mole", answer), ("mole", msgspec.structs.replace(answer, device="mole"))):
        with pytest.raises(ProtocolError, match="to another device"):
            asker.take(name, forged)
    assert not waiting.answer.done()

    now = 4.0  # the device connects anew: it is asked again, for the time that is left
    asker.again("pi")
    asker.again("zero")
    (again,) = messages(device)
    assert decode_message(again.payload, Predict) == msgspec.structs.replace(sent, patience_s=6.0)
    asker.take("pi", answer)
    assert waiting.answer.result(0) == answer
    asker.take("pi", answer)  # a repetition changes nothing
    now = 11.0
    asker.again("pi")
    assert messages(device) == []


def test_requests_that_wait_are_bounded_and_may_be_dropped(bench: Bench) -> None:
    asker = Asker(bench.hub.join(), "default", time.monotonic)
    waiting = [asker.ask("pi", b"{}", 10.0) for _ in range(MOST_ASKED)]
    with pytest.raises(NetworkError, match=f"{MOST_ASKED} requests for predictions wait already"):
        asker.ask("pi", b"{}", 10.0)
    asker.drop(waiting[0])
    asker.ask("pi", b"{}", 10.0)


def test_a_request_that_cannot_be_sent_does_not_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = bench.hub.join()
    asker = Asker(transport, "default", time.monotonic)

    def broken(*_: Any, **__: Any) -> None:
        raise NetworkError("the connection is gone", "")

    with monkeypatch.context() as gone:
        gone.setattr(transport, "publish", broken)
        for _ in range(MOST_ASKED):
            with pytest.raises(NetworkError, match="the connection is gone"):
                asker.ask("pi", b"{}", 10.0)
    asker.ask("pi", b"{}", 10.0)  # none of them takes a place


# -- processes ------------------------------------------------------------------------------------------------------


def test_a_flood_over_the_broker_changes_no_bit_of_the_rounds(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=3, steps=8, min_reports=2))
    plain = fleet.device("a", 1)
    asked = fleet.device("b", 2, predict={"answer_server": True, "texts_per_minute": 1_000_000})
    wait_for(lambda: "begins: Covey" in asked.stderr.read_text(), "device b")
    stranger = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{fleet.port}"), "stranger")
    stranger.subscribe(topic_for("default", "b", "predicted"))
    codes: Counter[int] = Counter()
    numbers = itertools.count()
    while asked.popen.poll() is None:
        for number in itertools.islice(numbers, 20):
            stranger.publish(topic_for("default", "b", "predict"), encode_message(request(number)))
        while (event := stranger.receive(0.05)) is not None:
            if isinstance(event, Message):
                codes[decode_message(event.payload, Predicted).code] += 1
    stranger.close()
    assert {process.result()["adapter_sha256"] for process in (plain, asked)} == {server.result()["adapter_sha256"]}
    assert codes[0] > 0, codes
    assert PRIVATE not in asked.stderr.read_text()
