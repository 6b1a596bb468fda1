"""Small packets of MQTT are sent at once, on the first connection and on every later one."""

from __future__ import annotations

import contextlib
import socket

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt_client import make_client


def test_no_packet_waits_for_the_acknowledgement_of_the_one_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        port = broker.getsockname()[1]
        client = make_client(parse_broker(f"mqtt://127.0.0.1:{port}"), "one", None)
        client.connect("127.0.0.1", port)
        for _ in range(3):
            connection = client.socket()
            assert isinstance(connection, socket.socket)
            with contextlib.closing(broker.accept()[0]):
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            client.reconnect()
        client.disconnect()
