"""``covey serve --report-connections``: a swarm's rounds over several connections, of which some are cut, and kills."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, has_mosquitto, mosquitto, wait_for, write_job
from relay import relay_to
from trusted import TrustedFleet, broker

from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import attempts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle

DEVICES, ROUNDS = 40, 8
pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    made = Fleet(tmp_path, tiny_bundle, 0, external=True)
    yield made
    made.stop()


@pytest.fixture
def trusted(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def submit(fleet: Fleet, rounds: int) -> None:
    folder = fleet.root / "jobs" / "load"
    folder.mkdir(parents=True)
    needed = {"min_devices": DEVICES, "min_reports": DEVICES, "cohort": DEVICES, "max_attempts": 100}
    job = write_job(folder, name="load", devices="tag:swarm", rounds=rounds, **needed)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path), "--allow-absent")


def swarm(fleet: Fleet, address: str, *flags: str) -> Process:
    arguments = [
        "swarm",
        "--broker",
        address,
        "--devices",
        str(DEVICES),
        "--processes",
        "1",
        *flags,
        "--format",
        "json",
    ]
    return fleet._start("server.cli", arguments, "swarm")


def ended(server: Process) -> bool:
    return any(event.get("event") == "job" and event["state"] == "finished" for event in server.events())


def result(running: Process) -> dict[str, Any]:
    running.popen.send_signal(signal.SIGINT)
    return running.result()


def further(log: Path) -> set[str]:
    """Return the ends of the client ids of a server's connections, as mosquitto has logged them."""
    ids = {word for line in log.read_text().splitlines() for word in line.split() if word.startswith("covey-server-")}
    return {one.rsplit("-", 1)[-1] for one in ids} & {"1", "2", "3"}


@pytest.mark.slow
def test_rounds_lose_nothing_though_connections_are_cut_and_the_server_is_killed(fleet: Fleet) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(mosquitto(fleet.root / "broker"))
        ways = [stack.enter_context(relay_to(port)) for _ in range(3)]
        nodes = ",".join(f"127.0.0.1:{way.port}" for way in ways)
        flags = ("--broker", f"mqtt://{nodes}", "--report-connections", "3")
        server = fleet.stay(*flags)
        server.wait_event("serving")
        submit(fleet, ROUNDS)
        running = swarm(fleet, f"mqtt://127.0.0.1:{port}")
        for number, way in enumerate(ways, 1):  # in turn: the main connection is behind one of them
            server.wait_event("round_closed", number)
            way.cut()
        server.wait_event("round_closed", 4)
        server.popen.kill()
        server.popen.wait()
        again = fleet.stay(*flags)
        wait_for(lambda: ended(again), "end of the job")
        found = result(running)
        assert further(fleet.root / "broker" / "mosquitto.log") == {"1", "2"}
        assert "does not hand messages" not in server.stderr.read_text() + again.stderr.read_text()
    with contextlib.closing(Ledger(fleet.state_dir / LEDGER_FILE, read_only=True)) as ledger:
        closed = [attempt for attempt in attempts_of(ledger, "load") if attempt.state == "aggregated"]
    assert [(one.index, one.reports) for one in closed] == [(index, DEVICES) for index in range(ROUNDS)]
    assert found["lost_reports"] == found["lost_connections"] == found["messages_refused"] == 0
    assert found["reports"]["taken"] >= DEVICES * (ROUNDS - 1)
    # Unknown: to a server that has started again, and has not loaded the job yet. Its round is trained again.
    assert set(found["reports"]) <= {"taken", "duplicate", "late", "unknown"}
    assert list(found["proved"].values()) == [DEVICES]


def test_members_report_through_mosquitto_with_the_access_list_that_is_written(trusted: TrustedFleet) -> None:
    """Nothing is refused: a report may overtake the acceptance of its plan, which came over another connection."""
    with broker(trusted) as said:
        address = f"mqtts://127.0.0.1:{said['port']}"
        server = trusted.open("--broker", address, "--report-connections", "3")
        members = ("--members", str(trusted.root / "members"))
        trusted.covey("swarm", "--make-members", "--devices", str(DEVICES), *members)
        submit(trusted, ROUNDS)
        running = swarm(trusted, address, *members)
        wait_for(lambda: ended(server), "end of the job")
        assert trusted.covey("server", "status")["refused"] == {}
        found = result(running)
        assert further(trusted.root / "run" / "mosquitto.log") == {"1", "2"}
        assert "does not hand messages" not in server.stderr.read_text()
    assert found["reports"] == {"taken": DEVICES * ROUNDS}
    assert found["lost_reports"] == found["messages_refused"] == 0
