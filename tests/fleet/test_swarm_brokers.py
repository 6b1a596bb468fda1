"""A swarm and its brokers: several nodes, one that hangs when the swarm leaves, callbacks in another thread."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, free_port, has_mosquitto, mosquitto, start_mosquitto, wait_for
from swarms import result, swarm

from edge_runtime.network.address import parse_broker
from server.swarm.counts import Counts
from server.swarm.entrance import Entrance
from server.swarm.members import Member, names_of
from server.swarm.protection import Plain
from server.swarm.session import Session
from server.swarm.summary import result_of, summary_text
from server.swarm.surroundings import Surroundings
from server.swarm.swarm import Seen, SwarmOptions, run_swarm

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    made = Fleet(tmp_path, tiny_bundle, 0, external=True)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[[], tuple[int, subprocess.Popen[bytes]]]]:
    """Return a function that starts a mosquitto, and returns its port and its process."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[int, subprocess.Popen[bytes]]:
        port = free_port()
        config = tmp_path / f"{port}" / "mosquitto.conf"
        config.parent.mkdir()
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
        started.append(start_mosquitto(config))
        return port, started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_sessions_spread_over_the_nodes_and_go_on_to_one_that_is_left(
    fleet: Fleet, start_broker: Callable[[], tuple[int, subprocess.Popen[bytes]]]
) -> None:
    nodes = [start_broker() for _ in range(3)]
    address = "mqtt://" + ",".join(f"127.0.0.1:{port}" for port, _ in nodes)
    running = swarm(fleet, "--devices", "30", broker=address)
    wait_for(lambda: "30 of 30 connected" in running.stderr.read_text(), "all connected")
    for port, process in nodes[:2]:
        log = (fleet.root / str(port) / "mosquitto.log").read_text()
        assert "swarm-" in log, "each node has some of them"
        process.kill()
    wait_for(lambda: "connections broke" in running.stderr.read_text(), "the loss")
    wait_for(lambda: "30 of 30 connected" in running.stderr.read_text().splitlines()[-1], "all on the third node")
    running.popen.send_signal(signal.SIGINT)
    found = result(running)
    assert found["logins"] == 30 + found["lost_connections"]
    assert 0 < found["lost_connections"] < 30


def test_sessions_whose_goodbye_the_broker_does_not_take_are_told(
    start_broker: Callable[[], tuple[int, subprocess.Popen[bytes]]],
) -> None:
    """The broker is stopped, as a machine that hangs: connections stay, and nothing is answered."""
    port, process = start_broker()
    members = [Member(name) for name in names_of(6)]
    told = False

    def should_stop() -> bool:
        return told

    def observe(seen: Seen) -> None:
        nonlocal told
        if seen.counts.connected == len(members) and not told:
            process.send_signal(signal.SIGSTOP)
            told = True

    address = parse_broker(f"mqtt://127.0.0.1:{port}")
    options = SwarmOptions(address, "default", members, None, (), every_s=0.2, for_s=120.0, leaves_s=1.0)
    seen = run_swarm(options, should_stop, observe)
    found = result_of(seen)
    assert (found["left_open"], found["processes_killed"]) == (6, 0)
    assert "6 sessions were still connected at the end" in summary_text(found)


def test_what_paho_reports_in_another_thread_is_taken_in_in_the_loops(tmp_path: Path) -> None:
    """paho may call back in the thread that makes a connection; counts and sockets belong to the event loop."""
    found: list[str] = []

    async def scene(port: int) -> None:
        counts, entrance = Counts(), Entrance(100.0)
        around = Surroundings(parse_broker(f"mqtt://127.0.0.1:{port}"), "default", [], counts, entrance)
        door = asyncio.create_task(entrance.run())
        session = Session("swarm-00001", None, Plain("default"), "1", around)
        came, went, is_here = around.came, around.went, asyncio.Event()
        own = threading.get_ident()

        def arrived() -> None:
            came()
            is_here.set()

        def watched() -> None:
            found.append("loop" if threading.get_ident() == own else "another thread")
            went()

        around.came, around.went = arrived, watched  # type: ignore[method-assign]
        session.enter()
        await is_here.wait()
        client: Any = session.client
        await asyncio.to_thread(client.loop_read)  # nothing waits: it only shows that the thread may
        connection = client.socket()
        connection.shutdown(2)
        await asyncio.to_thread(client.loop_read)  # the end of the connection is seen in that thread
        await around.is_empty.wait()
        session.leave()
        door.cancel()
        await asyncio.to_thread(entrance.close)
        assert counts.lost_connections == 1

    with mosquitto(tmp_path) as port:
        asyncio.run(scene(port))
    assert found == ["loop"]
