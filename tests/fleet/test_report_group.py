"""A server's connections for reports, as one transport: against real mosquittos, and a broker without groups."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from fleets import free_port, has_mosquitto, mosquitto, wait_for
from relay import relay_to

from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.address import BrokerAddress, parse_broker
from edge_runtime.network.broker_nodes import BrokerNodes
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Connected, Message
from edge_runtime.protocol.topics import topic_for
from server.serving.broker_access import hands_reports_to_groups
from server.serving.report_group import ReportGroup
from server.web.broker import open_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.network.transport import Event

REPORTS, STATES = topic_for("default", "+", "report"), topic_for("default", "+", "state")
NO_ROOM = 0
SILENCE_S = 1.0
"""Seconds without a message after which a test takes it that none is left: what comes twice comes at once."""
pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


class Server:
    """A report group whose connections a test can tell apart; connection n goes through the n-th port."""

    def __init__(self, ports: list[int], group: str = "group-of-this-server") -> None:
        self.came: Counter[int] = Counter()  # messages by the number of the connection

        def connect(number: int, hand_to: Callable[[Event], None]) -> MqttTransport:
            def counted(event: Event) -> None:
                self.came[number] += isinstance(event, Message)
                hand_to(event)

            if ports[number] == NO_ROOM:
                raise NetworkError("no room", "make room")
            identity = f"server-{group}-{number}"
            return MqttTransport(on(ports[number]), identity, keep_session=False, hand_to=counted)

        self.group = ReportGroup(
            connect, len(ports), REPORTS, group, lambda: hands_reports_to_groups(on(ports[0]), "default", None)
        )
        for topic_filter in (STATES, REPORTS):
            self.group.subscribe(topic_filter)

    def connected(self) -> None:
        """Wait for the next connection that counts as one of the server."""
        while not isinstance(self.group.receive(120), Connected):
            pass

    def is_in_the_group(self, member: MqttTransport) -> None:
        """Wait until every connection has brought a report: the broker has taken its subscription."""
        begun = Counter(self.came)
        while min(self.came[number] - begun[number] for number in range(self.group.connections)) == 0:
            member.publish(topic_for("default", "pi", "report"), b"ready?")
            self.group.receive(0.1)
        self.heard()
        self.came.clear()

    def heard(self, at_least: int = 0) -> Counter[bytes]:
        """Return the messages that come, by payload: ``at_least`` of them, and what follows without a pause."""
        found: Counter[bytes] = Counter()
        while (event := self.group.receive(120 if found.total() < at_least else SILENCE_S)) is not None:
            if isinstance(event, Message) and event.payload:
                found[event.payload] += 1
        return found


def on(port: int) -> BrokerAddress:
    return parse_broker(f"mqtt://127.0.0.1:{port}")


@contextlib.contextmanager
def served(ports: list[int], group: str = "group-of-this-server") -> Iterator[Server]:
    server = Server(ports, group)
    try:
        server.connected()
        yield server
    finally:
        server.group.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[int, MqttTransport]]:
    """A mosquitto's port, and a member's connection to it."""
    with mosquitto(tmp_path / "mosquitto") as port:
        transport = MqttTransport(on(port), "pi", keep_session=False)
        yield port, transport
        transport.close()


def say(transport: MqttTransport, first: int, count: int, kind: str = "report") -> Counter[bytes]:
    """Publish numbered messages; return what is to be heard."""
    payloads = [f"{kind} {index}".encode() for index in range(first, first + count)]
    for index, payload in enumerate(payloads):
        transport.publish(topic_for("default", f"pi-{index % 7}", kind), payload)  # type: ignore[arg-type]
    return Counter(payloads)


def test_each_report_comes_once_and_every_connection_brings_some(device: tuple[int, MqttTransport]) -> None:
    port, transport = device
    with served([port] * 3) as server:
        assert server.group.connections == 3
        server.is_in_the_group(transport)
        expected = say(transport, 0, 300) + say(transport, 0, 20, "state")
        assert server.heard(320) == expected
        assert set(server.came) == {0, 1, 2}
        assert min(server.came.values()) > 50
        # Another server on the broker has a group of its own: neither takes anything from the other.
        with served([port] * 2, "group-of-another-server") as other:
            other.is_in_the_group(transport)
            server.heard()
            again = say(transport, 300, 50)
            assert server.heard(50) == again
            assert other.heard(50) == again


def test_what_is_said_after_a_connection_was_cut_comes_whole(device: tuple[int, MqttTransport]) -> None:
    """The cut connection counts as a new one of the server once it is back: devices send again what was under way."""
    port, transport = device
    with relay_to(port) as first, relay_to(port) as second, served([first.port, second.port, port]) as server:
        for relay in (second, first):  # a further connection, then the main one
            relay.cut()
            server.connected()
            assert server.group.connections == 3
            server.is_in_the_group(transport)
            expected = say(transport, 0, 90)
            assert server.heard(90) == expected
            assert set(server.came) == {0, 1, 2}, "all three are in the group again"


def test_where_the_other_connections_stay_away_the_main_one_has_all_reports(
    device: tuple[int, MqttTransport], caplog: pytest.LogCaptureFixture
) -> None:
    port, transport = device
    with contextlib.ExitStack() as stack:
        relays = [stack.enter_context(relay_to(port)) for _ in range(2)]
        with served([port, *(relay.port for relay in relays)]) as server:
            server.is_in_the_group(transport)
            for relay in relays:
                relay.close()
            wait_for(lambda: caplog.text.count("connection to the broker lost") == 2, "both to be missed")
            expected = say(transport, 0, 100)
            assert server.heard(100) == expected


def test_a_connection_that_there_is_no_room_for_is_done_without(
    device: tuple[int, MqttTransport], caplog: pytest.LogCaptureFixture
) -> None:
    port, transport = device
    with served([port, port, NO_ROOM, port]) as server:
        assert server.group.connections == 2
        assert "reports come through 2 connections: no room" in caplog.text
        server.is_in_the_group(transport)
        expected = say(transport, 0, 10)
        assert server.heard(10) == expected


def test_the_servers_own_broker_has_groups() -> None:
    with open_broker("embedded", "127.0.0.1", 0) as address:
        transport = MqttTransport(on(address.port), "pi", keep_session=False)
        try:
            with served([address.port] * 3) as server:
                server.is_in_the_group(transport)
                assert server.group.connections == 3
                expected = say(transport, 0, 90)
                assert server.heard(90) == expected
                assert set(server.came) == {0, 1, 2}
        finally:
            transport.close()


# -- brokers without shared subscriptions ---------------------------------------------------------------------------


def test_a_broker_without_groups_gets_one_plain_subscription_and_it_is_said_once(
    device: tuple[int, MqttTransport], caplog: pytest.LogCaptureFixture
) -> None:
    port, transport = device
    with relay_to(port) as way:
        way.lacks_groups = True
        with served([way.port] * 3) as server:
            assert server.group.connections == 1
            server.is_in_the_group(transport)
            expected = say(transport, 0, 50)
            assert server.heard(50) == expected
    assert caplog.text.count("does not hand messages to groups") == 1


@pytest.mark.slow
def test_a_broker_that_is_replaced_by_one_without_groups_is_noticed_before_the_hello(
    device: tuple[int, MqttTransport], caplog: pytest.LogCaptureFixture
) -> None:
    port, transport = device
    with relay_to(port) as way, served([way.port] * 3) as server:
        server.is_in_the_group(transport)
        assert server.group.connections == 3
        way.lacks_groups = True
        for _ in range(2):  # and back to one that has them: it stays with the one subscription
            way.cut()
            server.connected()
            assert server.group.connections == 1
            server.is_in_the_group(transport)
            expected = say(transport, 0, 30)
            assert server.heard(30) == expected
            way.lacks_groups = False
    assert caplog.text.count("does not hand messages to groups") == 1


def test_a_broker_that_cannot_be_asked_is_no_broker_without_groups() -> None:
    assert hands_reports_to_groups(on(free_port()), "default", None) is None


# -- nodes, and the number of connections ---------------------------------------------------------------------------


def test_the_connections_begin_at_different_nodes_of_a_cluster() -> None:
    address = parse_broker("mqtts://pi:secret@a,b,c")
    begun = [address.begun_at(number) for number in range(4)]
    assert [[node.host for node in one.nodes()] for one in begun] == [[*"abc"], [*"bca"], [*"cab"], [*"abc"]]
    assert {(node.username, node.password, node.tls) for one in begun for node in one.nodes()} == {
        ("pi", "secret", True)
    }
    assert [BrokerNodes(one, random.Random(7)).now.host for one in begun] == [*"abca"]
    assert [node.host for node in parse_broker("mqtt://a").begun_at(3).nodes()] == ["a"]


@pytest.mark.parametrize("count", ["0", "-1", "33"])
def test_a_number_of_connections_that_cannot_be_is_refused(
    count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.cli import main

    flags = ["serve", "--state-dir", str(tmp_path), "--report-connections", count]
    assert main(flags) == ConfigError.exit_code
    assert f"--report-connections {count} cannot be" in capsys.readouterr().err
