"""Server, devices and broker are killed with -9 at random points: the job ends on the bits of an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, free_port, has_mosquitto, start_mosquitto, wait_for, write_job
from trusted import TrustedFleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle

KILLS = 6
"""Kills of one run; CI makes nine runs, 54 kills. COVEY_KILL_RUNS asks for another number: 84 for 504 kills."""
RUNS = int(os.environ.get("COVEY_KILL_RUNS", "9"))
NAMES = ("a", "b", "c")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def job_of(root: Path) -> Path:
    """A job of three rounds that needs all three devices in each: whatever happens, the same reports count."""
    stld = {"steps": 6, "batch_size": 4, "personal_share": 0.34, "device_levels": {"b": 2, "c": 0}}
    rules: dict[str, Any] = {"min_devices": 3, "min_reports": 3, "max_attempts": 1000, "deadline_s": 60.0}
    return write_job(root, rounds=3, steps=6, stld=stld, **rules)


class Plain(Fleet):
    """A fleet without an authority, through mosquitto, which forgets everything when it is killed."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        super().__init__(root, bundle, free_port(), external=True)
        self.job = job_of(root)
        self.http_port = free_port()

    def start_broker(self) -> subprocess.Popen[bytes]:
        path = self.root / "mosquitto.conf"
        path.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nuser root\n")
        return start_mosquitto(path)

    def start_server(self) -> Process:
        # Later flags count: Fleet gives a port of 0.
        return self.serve(self.job, "--broker", f"mqtt://127.0.0.1:{self.port}", "--http-port", str(self.http_port))

    def start_device(self, name: str) -> Process:
        return self.device(name, NAMES.index(name))


class Trusted(TrustedFleet):
    """A fleet with an authority, through the embedded broker, which dies with its server."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        super().__init__(root, bundle)
        self.job = job_of(root)
        self.said = {"http_port": free_port(), "join_port": free_port()}
        enrolling = self.open()
        for seed, name in enumerate(NAMES):
            self.join(name, seed)
        enrolling.popen.send_signal(signal.SIGTERM)
        enrolling.popen.wait(120)

    def start_broker(self) -> None:
        return None

    def start_server(self) -> Process:
        ports = {"--mqtt-port": self.port, "--http-port": self.said["http_port"], "--join-port": self.said["join_port"]}
        return self.serve(self.job, *[str(word) for pair in ports.items() for word in pair])

    def start_device(self, name: str) -> Process:
        config = str(self.config(name))
        flags = ["run", "--config", config, "--format", "json", "--until-finished"]
        return self._start("edge_runtime.cli", flags, name)


class Chaos:
    """A fleet whose processes die and are started again.

    Args:
        fleet: the fleet.
        rng: decides who dies, and when.
    """

    def __init__(self, fleet: Plain | Trusted, rng: random.Random) -> None:
        self.fleet, self.rng = fleet, rng
        self.broker = fleet.start_broker()
        self.server = fleet.start_server()
        self.devices = {name: fleet.start_device(name) for name in NAMES}
        self.killed: list[str] = []

    def run(self, kills: int) -> str:
        """Let the job run to its end, with so many kills on its way; return its adapter's hash."""
        for _ in range(kills):
            if not self._reach_some_point():
                break
            self._kill()
        result = self.server.result(900.0)
        ends = {name: device.result(900.0)["adapter_sha256"] for name, device in self.devices.items()}
        assert ends == dict.fromkeys(NAMES, result["adapter_sha256"])
        counted = self.fleet.covey("job", "show", "job")["round_list"]
        assert [row["reports"] for row in counted if row["state"] == "aggregated"] == [3, 3, 3]
        return str(result["adapter_sha256"])

    def _reach_some_point(self) -> bool:
        """Let the server say some more, and then some time pass; return whether it still runs."""
        more = len(self.server.events()) + self.rng.randint(1, 8)
        until = time.monotonic() + self.rng.uniform(2.0, 8.0)
        wait_for(
            lambda: self._is_over() or len(self.server.events()) >= more or time.monotonic() > until, "a point in time"
        )
        time.sleep(self.rng.choice([0.0, 0.0, self.rng.uniform(0.0, 0.3)]))  # not to wait for anything: to hit any line
        return not self._is_over()

    def _is_over(self) -> bool:
        return self.server.popen.poll() is not None

    def _kill(self) -> None:
        # No device twice: one that died twice in the same work refuses it, by design (test_deaths).
        alive = [name for name, device in self.devices.items() if device.popen.poll() is None]
        victims = ["server", *(name for name in alive if name not in self.killed)]
        victim = self.rng.choice([*victims, *(["broker"] if self.broker is not None else [])])
        self.killed.append(victim)
        if victim == "broker" and self.broker is not None:
            self.broker.kill()
            self.broker.wait()
            self.broker = self.fleet.start_broker()
            return
        process = self.server if victim == "server" else self.devices[victim]
        process.popen.kill()
        process.popen.wait()
        if victim == "server":
            self.server = self.fleet.start_server()
        else:
            self.devices[victim] = self.fleet.start_device(victim)

    def close(self) -> None:
        self.fleet.stop()
        if self.broker is not None:
            self.broker.kill()
            self.broker.wait()


@contextlib.contextmanager
def chaos(root: Path, bundle: Bundle, seed: int) -> Iterator[Chaos]:
    root.mkdir()
    kind = Plain if seed % 2 and has_mosquitto() else Trusted
    made = Chaos(kind(root, bundle), random.Random(seed))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, graphs: Bundle) -> str:
    with chaos(tmp_path_factory.mktemp("whole") / "fleet", graphs, 0) as whole:
        return whole.run(0)


@pytest.mark.parametrize("seed", range(RUNS))
def test_whoever_is_killed_the_job_ends_on_the_same_bits(
    seed: int, undisturbed: str, graphs: Bundle, tmp_path: Path
) -> None:
    with chaos(tmp_path / "fleet", graphs, seed) as disturbed:
        try:
            assert disturbed.run(KILLS) == undisturbed
        finally:
            print(f"seed {seed}: killed {', '.join(disturbed.killed)}")  # noqa: T201 shown with a failure
        assert disturbed.killed
