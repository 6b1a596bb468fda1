"""Real processes on a bad network: the job ends on the bits of an undisturbed one, and no device is stuck."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, has_mosquitto, start_mosquitto, wait_for, write_job
from impaired_link import (
    CLEAN,
    DEVICES,
    PARTITION,
    SERVER,
    SERVER_ADDRESS,
    ImpairedLink,
    Impairment,
    impaired_link,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle

NAMES = ("a", "b")
ROUNDS = 4
PORT, HTTP_PORT = 1883, 8080  # in a namespace of their own they are free
PARTITION_S = 120.0
BAD: dict[str, Impairment] = {
    "loss": Impairment(loss=0.3, delay_s=0.01),
    "delay": Impairment(delay_s=0.5),
    "duplicates": Impairment(duplicates=0.3, delay_s=0.01),
    "reordering": Impairment(reordered=0.3, delay_s=0.01, held_s=0.05),
    "all": Impairment(loss=0.1, delay_s=0.2, duplicates=0.1, reordered=0.1),
}
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed"),
]


class FarFleet(Fleet):
    """A server and its broker in one namespace, devices in another one, and a link between them."""

    def __init__(self, root: Path, bundle: Bundle, link: ImpairedLink) -> None:
        super().__init__(root, bundle, PORT, external=True)
        self.link = link
        rules: dict[str, Any] = {"min_devices": 2, "min_reports": 2, "max_attempts": 1000, "deadline_s": 30.0}
        self.job = write_job(root, rounds=ROUNDS, **rules)
        self.broker = self.start_broker()
        flags = ["--listen", SERVER_ADDRESS, "--broker", f"mqtt://{SERVER_ADDRESS}:{PORT}"]
        self.server = self.serve(self.job, *flags, "--http-port", str(HTTP_PORT))
        self.devices = {name: self.start_device(name) for name in NAMES}

    def prefix(self, name: str) -> list[str]:
        return self.link.inside(SERVER if name == "server" else DEVICES)

    def start_broker(self) -> subprocess.Popen[bytes]:
        """Start mosquitto, which remembers nothing of an earlier one."""
        path = self.root / "mosquitto.conf"
        path.write_text(f"listener {PORT}\nallow_anonymous true\nmax_queued_messages 0\nuser root\n")
        return start_mosquitto(path, self.link.inside(SERVER))

    def restart_broker(self) -> None:
        self.broker.kill()
        self.broker.wait()
        self.broker = self.start_broker()

    def start_device(self, name: str) -> Process:
        return self.device(name, NAMES.index(name), broker=f"mqtt://{SERVER_ADDRESS}:{PORT}")

    def restart_device(self, name: str) -> None:
        self.devices[name].popen.kill()
        self.devices[name].popen.wait()
        self.devices[name] = self.start_device(name)

    def end(self) -> str:
        """Wait until the job and its devices have ended; return the adapter's hash."""
        result = self.server.result(800.0)
        ends = {name: device.result(800.0)["adapter_sha256"] for name, device in self.devices.items()}
        assert ends == dict.fromkeys(NAMES, result["adapter_sha256"])
        closed = [event for event in self.server.events() if event.get("event") == "round_closed"]
        assert len(closed) == result["rounds"] == ROUNDS
        return str(result["adapter_sha256"])

    def stop(self) -> None:
        super().stop()
        self.broker.kill()
        self.broker.wait()


@contextlib.contextmanager
def far_fleet(root: Path, bundle: Bundle) -> Iterator[FarFleet]:
    root.mkdir(exist_ok=True)
    with impaired_link(3) as link:
        fleet = FarFleet(root, bundle, link)
        try:
            yield fleet
        finally:
            fleet.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> str:
    with far_fleet(tmp_path_factory.mktemp("whole") / "fleet", tiny_bundle) as fleet:
        return fleet.end()


@pytest.fixture
def fleet(undisturbed: str, tmp_path: Path, tiny_bundle: Bundle) -> Iterator[FarFleet]:
    assert undisturbed
    with far_fleet(tmp_path / "fleet", tiny_bundle) as made:
        yield made


def taken(fleet: FarFleet, more: int) -> None:
    """Wait until so many more packets have met the link."""
    before = fleet.link.counts["taken"]
    wait_for(lambda: fleet.link.counts["taken"] >= before + more, "packets")


def test_a_cut_and_a_broker_that_forgot(fleet: FarFleet, undisturbed: str) -> None:
    """Nobody on the devices' side learns that the broker is another one: their connections are half open."""
    fleet.server.wait_event("round_closed")
    fleet.link.impair(PARTITION)
    taken(fleet, 3)
    fleet.restart_broker()
    fleet.link.impair(CLEAN)
    assert fleet.end() == undisturbed


@pytest.mark.slow
def test_devices_behind_a_new_address(fleet: FarFleet, undisturbed: str) -> None:
    """Nothing closes the connections from the old address: they are noticed by their silence."""
    fleet.server.wait_event("round_closed")
    fleet.link.move_devices()
    assert fleet.end() == undisturbed


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind == "loss" else pytest.mark.long) for kind in BAD],
)
def test_a_bad_link(kind: str, fleet: FarFleet, undisturbed: str) -> None:
    fleet.server.wait_event("round_opened")
    fleet.link.impair(BAD[kind])
    assert fleet.end() == undisturbed
    assert fleet.link.counts["taken"] > 0


@pytest.mark.parametrize(
    "to_server", [pytest.param(PARTITION, marks=pytest.mark.slow), pytest.param(CLEAN, marks=pytest.mark.long)]
)
def test_a_partition_of_two_minutes(to_server: Impairment, fleet: FarFleet, undisturbed: str) -> None:
    """Of both directions, or of one: then the server hears its devices, and they do not hear it."""
    fleet.server.wait_event("round_closed")
    fleet.link.impair(PARTITION, to_server=to_server)
    time.sleep(float(os.environ.get("COVEY_PARTITION_S", PARTITION_S)))  # the fault itself; nothing to wait for
    fleet.link.impair(CLEAN)
    assert fleet.end() == undisturbed


@pytest.mark.slow
def test_a_device_that_dies_behind_a_partition(fleet: FarFleet, undisturbed: str) -> None:
    """The broker still holds its old connection when it comes back, with another address."""
    fleet.server.wait_event("round_closed")
    fleet.link.impair(PARTITION)
    taken(fleet, 3)
    fleet.restart_device("a")
    fleet.link.move_devices()
    fleet.link.impair(CLEAN)
    assert fleet.end() == undisturbed
