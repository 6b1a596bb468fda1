"""RabbitMQ at its limits: who has no room learns why, tries again, and is let in when there is room.

RabbitMQ 3.10 answers a login beyond a virtual host's limit with "not authorised". At its limit of open files it takes
the connection and never answers it. Its setting ``connection_max`` does not count connections of MQTT.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, wait_for
from rabbitmq_cluster import has_rabbitmq, rabbitmq_node
from swarms import result, swarm

from edge_runtime.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Process
    from rabbitmq_cluster import RabbitNode

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_rabbitmq(), reason="RabbitMQ is not installed: apt-get install rabbitmq-server"),
]
OPEN_FILES = 125
"""Of which Erlang and RabbitMQ keep 100 and more: 23 are left for connections."""


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    made = Fleet(tmp_path, tiny_bundle, 0, external=True)
    try:
        yield made
    finally:
        made.stop()


def last_line(process: Process) -> str:
    lines = process.stderr.read_text().splitlines()
    return lines[-1] if lines else ""


def ended(process: Process, code: int = 0) -> dict[str, Any]:
    process.popen.send_signal(signal.SIGINT)
    return result(process, code)


def is_in(node: RabbitNode, device: str) -> bool:
    return f"covey-default-{device}" in node.control("list_mqtt_connections", "client_id")


def test_who_a_full_virtual_host_refuses_is_told_of_limits_and_gets_in_when_it_is_raised(fleet: Fleet) -> None:
    with rabbitmq_node(fleet.root / "node") as node:
        address = f"mqtt://127.0.0.1:{node.port}"
        node.control("set_vhost_limits", "-p", "/", '{"max-connections": 20}')
        running = swarm(fleet, "--devices", "30", "--processes", "1", broker=address)
        wait_for(lambda: "20 of 30 connected" in last_line(running), "as many as there is room for")
        wait_for(lambda: "authorises no further session, while others stay" in last_line(running), "the reason")
        device = fleet.device("pi", 1, stays=True, broker=address, connect_timeout_s=900.0)
        wait_for(lambda: "may be at its limit of connections" in device.stderr.read_text(), "the device's reason")
        assert "set_vhost_limits" in device.stderr.read_text()
        node.control("set_vhost_limits", "-p", "/", '{"max-connections": 50}')
        wait_for(lambda: "30 of 30 connected" in last_line(running), "all of them")
        wait_for(lambda: is_in(node, "pi"), "the device")
        found = ended(running)
        assert device.popen.poll() is None
    assert (found["devices_connected"], found["lost_connections"]) == (30, 0)
    assert set(found["refused_logins"]) == {"unavailable"}
    (cause,) = found["causes"]
    assert "set_vhost_limits" in cause["remedy"]


def test_who_a_broker_without_free_descriptors_never_answers_is_told_so_and_gets_in_when_others_leave(
    fleet: Fleet,
) -> None:
    with rabbitmq_node(fleet.root / "node", prefix=["prlimit", f"--nofile={OPEN_FILES}"]) as node:
        address = f"mqtt://127.0.0.1:{node.port}"
        running = swarm(fleet, "--devices", "30", "--processes", "1", broker=address)
        wait_for(lambda: "never answers them, while others stay" in last_line(running), "the reason")
        device = fleet.device("pi", 1, stays=True, broker=address, connect_timeout_s=900.0)
        wait_for(lambda: "takes the connection and never answers" in device.stderr.read_text(), "the device's reason")
        assert "limit of open files" in device.stderr.read_text()
        found = ended(running, NetworkError.exit_code)
        wait_for(lambda: is_in(node, "pi"), "the device")
        assert device.popen.poll() is None
    assert 10 < found["devices_connected"] < 30
    assert found["lost_connections"] == 0
    assert set(found["refused_logins"]) == {"unavailable"}
    (cause,) = found["causes"]
    assert "as many as it may take" in cause["finding"]
    assert "sockets_limit in rabbitmqctl status" in cause["remedy"]
