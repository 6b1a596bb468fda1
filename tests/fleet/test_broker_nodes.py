"""A broker with several addresses, and brokers that take no more connections: against real mosquittos."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from fleets import free_port, has_mosquitto, mosquitto, wait_for

from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.access import check_access
from edge_runtime.network.address import parse_broker
from edge_runtime.network.broker_nodes import BrokerNodes
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Connected, Message

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.network.address import BrokerAddress

_MISSING = not has_mosquitto()
LISTENER = "listener {port} 127.0.0.1\nallow_anonymous true\n"


def on(*ports: int) -> BrokerAddress:
    return parse_broker("mqtt://" + ",".join(f"127.0.0.1:{port}" for port in ports))


def connected(address: BrokerAddress, identity: str = "covey-default-pi", timeout_s: float = 60.0) -> MqttTransport:
    return MqttTransport(
        address, identity, keep_session=False, connect_timeout_s=timeout_s, rng=random.Random(identity)
    )


# -- addresses ------------------------------------------------------------------------------------------------------


def test_all_nodes_have_the_scheme_and_the_user_of_the_address() -> None:
    nodes = parse_broker("mqtts://pi:a,b%40@one,two:1884,[::1]:1885").nodes()
    assert [(node.host, node.port) for node in nodes] == [("one", 8883), ("two", 1884), ("::1", 1885)]
    assert {(node.tls, node.username, node.password, node.others) for node in nodes} == {(True, "pi", "a,b@", ())}


@pytest.mark.parametrize("url", ["mqtt://a,", "mqtt://,a", "mqtt://a,b:x", "mqtt://a,b/x", "mqtt://a,mqtt://b", "a,b"])
def test_a_list_with_a_bad_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="broker "):
        parse_broker(url)


def test_an_address_that_is_there_twice_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="a:1883 twice") as error:
        parse_broker("mqtt://pi:secret@a,b,a:1883")
    assert "secret" not in str(error.value)


def test_devices_begin_at_different_nodes_and_try_each_in_turn() -> None:
    address = parse_broker("mqtt://a,b,c")
    firsts = Counter(BrokerNodes(address, random.Random(seed)).now.host for seed in range(300))
    assert min(firsts.values()) > 60
    nodes, tried = BrokerNodes(address, random.Random(1)), []
    for _ in range(6):
        tried.append(nodes.now.host)
        nodes.go_on()
    assert sorted(tried[:3]) == ["a", "b", "c"]
    assert tried[3:] == tried[:3]
    assert [node.host for node in address.nodes()] == ["a", "b", "c"], "checks ask in the order that is written"


# -- nodes that go and come -----------------------------------------------------------------------------------------


@pytest.mark.mosquitto
@pytest.mark.skipif(_MISSING, reason="install the Debian package mosquitto")
def test_a_node_that_is_lost_is_followed_by_another_and_what_was_sent_arrives(tmp_path: Path) -> None:
    """Without a word lost: what was published while no node was there reaches the next one."""
    with contextlib.ExitStack() as first, mosquitto(tmp_path / "b") as second_port:
        first_port = first.enter_context(mosquitto(tmp_path / "a"))
        address = on(first_port, second_port)
        listener = connected(on(second_port), "covey-server")
        listener.subscribe("covey/v1/default/pi/report")
        seed = next(s for s in range(100) if BrokerNodes(address, random.Random(s)).now.port == first_port)
        device = MqttTransport(address, "covey-default-pi", keep_session=False, rng=random.Random(seed))
        assert isinstance(device.receive(60), Connected)
        device.publish("covey/v1/default/pi/report", b"to the first")
        first.close()
        device.publish("covey/v1/default/pi/report", b"to the second")
        assert isinstance(device.receive(120), Connected)
        events = iter(lambda: listener.receive(60), None)
        heard = next(event for event in events if isinstance(event, Message) and event.payload == b"to the second")
        assert heard.topic == "covey/v1/default/pi/report"
        device.close()
        listener.close()


@pytest.mark.mosquitto
@pytest.mark.skipif(_MISSING, reason="install the Debian package mosquitto")
def test_one_node_that_is_there_is_enough_to_begin_and_to_ask(tmp_path: Path) -> None:
    with mosquitto(tmp_path / "mosquitto") as port:
        address = on(free_port(), free_port(), port)
        connected(address).close()
        assert not check_access(address, "covey-check", None, reads=["covey/x"], writes=["covey/x"]).causes


def test_where_no_node_is_there_all_are_named() -> None:
    ports = [free_port(), free_port()]
    with pytest.raises(NetworkError) as error:
        connected(on(*ports), timeout_s=3.0)
    assert all(f"127.0.0.1:{port}" in str(error.value) for port in ports)


# -- brokers that are full ------------------------------------------------------------------------------------------


def filled(port: int) -> tuple[list[MqttTransport], NetworkError]:
    """Connect members until the broker lets no more in; mosquitto 2.0.11 lets in one more than its limit says."""
    inside: list[MqttTransport] = []
    while len(inside) < 10:
        try:
            inside.append(connected(on(port), f"covey-default-{len(inside)}", timeout_s=8.0))
        except NetworkError as error:
            return inside, error
    raise AssertionError("the broker has no limit")


@pytest.mark.mosquitto
@pytest.mark.skipif(_MISSING, reason="install the Debian package mosquitto")
def test_a_full_broker_is_named_and_lets_in_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's connection is of the same kind: it waits with pauses that grow, and joins when another leaves."""
    with mosquitto(tmp_path / "mosquitto", LISTENER + "max_connections 2\n") as port:
        inside, error = filled(port)
        assert "closes the connection without an answer" in str(error)
        assert "max_connections" in error.hint
        caplog.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(connected, on(port), "covey-default-late", 240.0)
            wait_for(lambda: "max_connections" in caplog.text, "a line that names the limit")
            assert not waiting.done()
            inside.pop().close()
            late = waiting.result()
        assert isinstance(late.receive(60), Connected)
        for transport in (late, *inside):
            transport.close()


@pytest.mark.mosquitto
@pytest.mark.skipif(_MISSING, reason="install the Debian package mosquitto")
def test_beside_a_full_node_there_is_another(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path / "full", LISTENER + "max_connections 2\n") as full,
        mosquitto(tmp_path / "free") as free,
    ):
        inside, _ = filled(full)
        listener = connected(on(free), "covey-server")
        listener.subscribe("covey/v1/default/pi/report")
        address = on(full, free)
        seed = next(s for s in range(100) if BrokerNodes(address, random.Random(s)).now.port == full)
        device = MqttTransport(address, "covey-default-pi", keep_session=False, rng=random.Random(seed))
        device.publish("covey/v1/default/pi/report", b"by the other node")
        events = iter(lambda: listener.receive(60), None)
        assert any(isinstance(event, Message) and event.payload == b"by the other node" for event in events)
        for transport in (device, listener, *inside):
            transport.close()
