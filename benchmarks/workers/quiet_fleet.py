"""A real server with its embedded broker, and MQTT connections that announce devices and then do nothing but stay."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.enums import MQTTProtocolVersion

from benchmarks.harness.process_memory import status_mb
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt_client import make_client
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.topics import hello_topic, topic_for
from server.swarm.answers import birth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from edge_runtime.network.mqtt_client import Client

_FLEET = "bench"
_KEEP_ALIVE_S = 20
_MISC_S = 1.0


class QuietFleet:
    """Connections of devices that announce themselves when the server says hello, driven by one thread.

    Args:
        port: the broker's port.
        devices: number of devices.
    """

    def __init__(self, port: int, devices: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._clients: list[Client] = []
        self.announced: set[str] = set()
        address = parse_broker(f"mqtt://127.0.0.1:{port}")
        for index in range(devices):
            client = make_client(address, f"device-{index:04}", None, protocol=MQTTProtocolVersion.MQTTv311)
            client.user_data_set(f"device-{index:04}")
            client.on_connect = self._on_connect
            client.on_message = self._on_message
            client.connect(address.host, address.port, keepalive=_KEEP_ALIVE_S)
            self._selector.register(_socket_of(client), selectors.EVENT_READ, client)
            self._clients.append(client)
            self.turn(0)

    def _on_connect(self, client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        client.subscribe(hello_topic(_FLEET), qos=1)

    def _on_message(self, client: Any, name: str, message: Any) -> None:  # noqa: ANN401
        epoch = decode_message(message.payload, Hello).epoch
        state = DeviceState(state="online", boot_id="1", epoch=epoch)
        client.publish(topic_for(_FLEET, name, "birth"), encode_message(birth(name, epoch)), qos=1, retain=True)
        client.publish(topic_for(_FLEET, name, "state"), encode_message(state), qos=1, retain=True)
        self.announced.add(name)

    def turn(self, timeout_s: float) -> None:
        """Read what has arrived, and send what waits."""
        for key, _ in self._selector.select(timeout_s):
            client: Client = key.data
            if client.loop_read() != MQTT_ERR_SUCCESS:
                raise SystemExit("a quiet device has lost its connection")
        for client in self._clients:
            if client.want_write():
                client.loop_write()

    def stay(self, seconds: float) -> None:
        """Stay connected for a while."""
        until, misc_at = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            self.turn(0.1)
            if time.monotonic() >= misc_at:
                misc_at = time.monotonic() + _MISC_S
                for client in self._clients:
                    client.loop_misc()


def _socket_of(client: Client) -> socket.socket:
    found = client.socket()
    assert isinstance(found, socket.socket)  # noqa: S101 it has just connected
    return found


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run ``covey serve`` with an embedded broker; yields the process and the broker's port."""
    command = [sys.executable, "-m", "server.cli", "serve", "--listen", "127.0.0.1", "--mqtt-port", "0"]
    command += ["--http-port", "0", "--fleet", _FLEET, "--state-dir", str(folder / "state"), "--format", "json"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None  # noqa: S101 it is a pipe
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"covey serve did not start:\n{(folder / 'log').read_text()}")
        port = int(json.loads(line)["mqtt_port"])
        process.stdout.close()  # what it prints from here on is of no use
        yield process, port
    finally:
        process.kill()
        process.wait()


def measure_idle(devices: int, seconds: float) -> dict[str, object]:
    """Return the share of a core and the memory that a server takes while many devices are there and nothing trains.

    Args:
        devices: number of connections.
        seconds: how long it is watched, after all devices are known to it.

    Returns:
        ``idle_cpu_share`` and ``idle_rss_mb`` of the server's process, ``idle_broker_cpu_share`` and
        ``idle_broker_rss_mb`` of its embedded broker, and ``idle_devices_announced``.
    """
    with tempfile.TemporaryDirectory(prefix="covey-idle-") as name, _server(Path(name)) as (process, port):
        quiet = QuietFleet(port, devices)
        until = time.monotonic() + 300.0
        while len(quiet.announced) < devices and time.monotonic() < until:
            quiet.stay(1.0)
        quiet.stay(10.0)  # the server writes what it has heard
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        before = [_cpu_s(member) for member in family]
        began = time.monotonic()
        quiet.stay(seconds)
        elapsed = time.monotonic() - began
        shares = [(_cpu_s(member) - start) / elapsed for member, start in zip(family, before, strict=True)]
        return {
            "idle_cpu_share": round(shares[0], 4),
            "idle_rss_mb": round(status_mb("VmRSS", process.pid), 1),
            "idle_broker_cpu_share": round(sum(shares[1:]), 4),
            "idle_broker_rss_mb": round(sum(status_mb("VmRSS", member.pid) for member in family[1:]), 1),
            "idle_devices_announced": len(quiet.announced),
        }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
