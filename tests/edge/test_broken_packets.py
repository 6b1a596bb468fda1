"""A broker that sends what is no MQTT: the thread that reads it lives on, and the connection is made again."""

from __future__ import annotations

import itertools
import random
import socket

import pytest
from brokers import tcp_server

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Connected, Message

CONNACK = b"\x20\x02\0\0"
GOOD = b"\x30\x05\0\x01ahi"


class Least(random.Random):
    """Draws the shortest pauses."""

    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    "broken",
    [
        b"\x30\x07\0\x04ab\x9c\xffx",  # a topic that is no UTF-8
        b"\x30\x05\0\x03\xed\xa0\x80",  # a surrogate
        b"\x30\x01\0",  # a message without a topic
        b"\x40\0",  # an acknowledgement of nothing
        b"\xf0\0",  # no packet of MQTT 3.1.1
        b"\x30\xff\xff\xff\xff\xff",  # a length without end
    ],
    ids=lambda packet: packet.hex(),
)
def test_a_broken_packet_ends_no_thread(broken: bytes) -> None:
    """Before, a topic that is no UTF-8 ended paho's thread: the device was silent until its next start."""
    logins = itertools.count()

    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(CONNACK + (broken + GOOD if next(logins) == 0 else GOOD))
        while connection.recv(1000):
            pass

    with tcp_server(answer) as port:
        address = parse_broker(f"mqtt://127.0.0.1:{port}")
        transport = MqttTransport(address, "covey-x", connect_timeout_s=20.0, rng=Least())
        try:
            while not isinstance(event := transport.receive(60.0), Message):
                assert isinstance(event, Connected)
            assert event == Message("a", b"hi")
        finally:
            transport.close()
