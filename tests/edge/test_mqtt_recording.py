"""The reader of recorded traffic finds what is not MQTT 3.1.1: else the tests that use it would prove nothing."""

from __future__ import annotations

import paho.mqtt.client as mqtt
import pytest
from mqtt_recording import NotMqtt311Error, Packet, read_packets, recorded
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message, Will
from server.web.broker import open_broker

CONNECT = b"\x10\x0d\0\x04MQTT\x04\x02\0\x14\0\x01x"


def test_packets_are_read() -> None:
    stream = CONNECT + b"\x32\x0a\0\x03a/b\0\x07hey" + b"\x82\x08\0\x01\0\x03a/+\x01" + b"\xc0\0\xe0\0"
    connect, publish, subscribe, ping, goodbye = read_packets(stream)
    assert connect == Packet("CONNECT", 15, 4, "x")
    assert publish == Packet("PUBLISH", 12, topics=("a/b",), qos=1, payload=b"hey")
    assert subscribe == Packet("SUBSCRIBE", 10, topics=("a/+",), qos=1)
    assert (ping.kind, goodbye.kind) == ("PINGREQ", "DISCONNECT")
    for cut in range(len(stream)):
        assert read_packets(stream[:cut]) == read_packets(stream)[: len(read_packets(stream[:cut]))]


@pytest.mark.parametrize(
    "foreign",
    [
        b"\xf0\0",  # AUTH
        b"\x40\x03\0\x01\x10",  # PUBACK with a reason code
        b"\xe0\x01\0",  # DISCONNECT with one
        b"\x20\x03\0\0\0",  # CONNACK with properties
        b"\x36\x06\0\x01a\0\x01x",  # QoS 3
        b"\x82\x06\0\x01\0\x01a\x09",  # no local
        b"\x90\x03\0\x01\x87",  # not authorised, as MQTT 5 says it
        b"\x30\x03\0\x01+",
        b"\x30\x04\0\x02\xc3\x28",
        b"\x80\x06\0\x01\0\x01a\x01",  # flags
        b"\x30\xff\xff\xff\xff\x01",
        CONNECT[:1] + b"\x0e" + CONNECT[2:] + b"\0",
    ],
    ids=lambda data: data.hex(),
)
def test_what_is_beyond_mqtt_3_1_1_is_found(foreign: bytes) -> None:
    with pytest.raises(NotMqtt311Error):
        read_packets(CONNECT + foreign)


def test_a_real_conversation_is_recorded() -> None:
    with open_broker("embedded", "127.0.0.1", 0) as broker, recorded(broker.port) as recorder:
        address = parse_broker(f"mqtt://127.0.0.1:{recorder.port}")
        will = Will("covey/w", b"gone")
        transport = MqttTransport(address, "covey-x", will=will, connect_timeout_s=60.0)
        transport.subscribe("covey/#")
        assert transport.deliver("covey/a", b"\0" * 20_000)
        while not isinstance(transport.receive(60.0), Message):
            pass
        transport.close()
        (connection,) = recorder.connections
        sent, came = read_packets(bytes(connection.up)), read_packets(bytes(connection.down))
    assert sent[0] == Packet("CONNECT", sent[0].size, 4, "covey-x", ("covey/w",), 1, b"gone", retain=True)
    assert [p.size > 20_000 for p in sent if p.kind == "PUBLISH"] == [True]
    assert {"CONNACK", "SUBACK", "PUBACK", "PUBLISH"} <= {packet.kind for packet in came}


def test_a_client_of_mqtt_5_is_known_by_its_level() -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "five", protocol=MQTTProtocolVersion.MQTTv5)
    with open_broker("embedded", "127.0.0.1", 0) as broker, recorded(broker.port) as recorder:
        client.connect("127.0.0.1", recorder.port)
        client.loop_start()
        client.loop_stop()
        (connection,) = recorder.connections
    (packet,) = read_packets(bytes(connection.up))[:1]
    assert (packet.level, packet.client_id) == (5, "five")
