"""The signed transport: what passes it, what comes back, floods, counts and log lines."""

from __future__ import annotations

import logging

import pytest
from signing import FLEET, fleet_of

from edge_runtime.errors import ProtocolError
from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Connected, GivenUp, Message
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.signed import SERVER, decode_envelope
from edge_runtime.protocol.topics import hello_topic, servers_topic, topic_for
from edge_runtime.signing.refusals import LOG_AGAIN_S, MOST_SPEAKERS, OTHERS, Refusals
from edge_runtime.signing.verifier import Reason, Refused

# -- the transport --------------------------------------------------------------------------------------------------


def test_what_the_broker_does_not_take_comes_back_as_it_was_published() -> None:
    hub, fleet = Hub(), fleet_of("pi")
    inner = hub.join()
    transport = fleet.transport(inner, "pi", "boot")
    assert isinstance(transport.receive(0), Connected)
    topic = topic_for(FLEET, "pi", "report")
    ear = hub.join()
    ear.subscribe(topic)
    transport.publish(topic, b"body")
    assert isinstance(ear.receive(0), Connected)
    sent = ear.receive(0)
    assert isinstance(sent, Message)
    assert decode_envelope(sent.payload).body == b"body"
    inner.deliver(GivenUp(topic, sent.payload, "too large", "do this"))
    assert transport.receive(0) == GivenUp(topic, b"body", "too large", "do this")


def test_topics_without_signatures_pass_and_empty_messages_say_nothing() -> None:
    hub, fleet = Hub(), fleet_of("pi")
    transport = fleet.transport(hub.join(), SERVER, "server")
    transport.subscribe("covey/#")
    hub.publish(servers_topic(FLEET), b"anything", retain=False)
    hub.publish(topic_for(FLEET, "pi", "report"), b"", retain=False)
    transport.publish(topic_for(FLEET, "pi", "probe"), b"plain")
    assert isinstance(transport.receive(0), Connected)
    assert transport.receive(0) == Message(servers_topic(FLEET), b"anything")
    assert transport.receive(0) == Message(topic_for(FLEET, "pi", "probe"), b"plain")
    assert transport.receive(0) is None
    assert transport.refused == {}


def test_nobody_publishes_where_another_speaks() -> None:
    transport = fleet_of("pi").transport(Hub().join(), "pi", "boot")
    for topic in (hello_topic(FLEET), topic_for(FLEET, "pi", "plan"), topic_for(FLEET, "zero", "report"), "elsewhere"):
        with pytest.raises(ProtocolError):
            transport.publish(topic, b"body")


def test_a_flood_does_not_keep_receive_from_returning() -> None:
    hub, fleet = Hub(), fleet_of("pi")
    transport = fleet.transport(hub.join(), SERVER, "server")
    transport.subscribe("covey/#")
    assert isinstance(transport.receive(0), Connected)
    for _ in range(1500):
        hub.publish(topic_for(FLEET, "pi", "report"), b"junk", retain=False)
    hub.publish(
        topic_for(FLEET, "pi", "report"),
        fleet.signer("pi", "boot").seal(topic_for(FLEET, "pi", "report"), b"honest", "server"),
        retain=False,
    )
    assert transport.receive(None) is None
    event = transport.receive(None)
    assert isinstance(event, Message)
    assert event.payload == b"honest"


# -- counts and the log ---------------------------------------------------------------------------------------------


def test_each_device_and_reason_has_a_line_and_a_flood_has_few(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    hub, fleet = Hub(), fleet_of("pi", "zero")
    transport = fleet.transport(hub.join(), SERVER, "server", clock=lambda: now)
    transport.subscribe("covey/#")

    def publish(name: str, payload: bytes, count: int) -> None:
        for _ in range(count):
            hub.publish(topic_for(FLEET, name, "report"), payload, retain=False)
        while transport.receive(0) is not None:
            pass

    with caplog.at_level(logging.INFO):
        publish("pi", b"junk", 50)
        publish("zero", b"junk", 20)
        publish("zero", encode_message(DeviceState(state="lost", boot_id="b")), 1)
        assert len(caplog.records) == 3
        now += LOG_AGAIN_S
        publish("pi", b"junk", 5)
    assert len(caplog.records) == 4
    assert "in the name of pi (malformed)" in caplog.records[-1].getMessage()
    assert "49 more" in caplog.records[-1].getMessage()
    assert transport.refused == {
        ("pi", Reason.MALFORMED): 55,
        ("zero", Reason.MALFORMED): 20,
        ("zero", Reason.UNSIGNED): 1,
    }


def test_invented_names_are_counted_together_after_many(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(lambda: 0.0)
    caplog.set_level(logging.ERROR)
    fleet = fleet_of()
    verifier = fleet.verifier(SERVER, "server")
    for index in range(MOST_SPEAKERS + 50):
        topic = topic_for(FLEET, f"n{index}", "report")
        result = verifier.check(topic, b"junk")
        assert isinstance(result, Refused)
        refusals.enter(topic, result)
    assert refusals.counts[(OTHERS, Reason.MALFORMED)] == 50
    assert len(refusals.counts) == MOST_SPEAKERS + 1
