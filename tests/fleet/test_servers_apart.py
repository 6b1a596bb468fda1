"""Two servers, each with its state directory: they share PostgreSQL and a bucket, and their clocks are hours apart."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Process, free_port, wait_for
from hybrid_job import FIELDS, NAMES
from postgres import Postgres
from s3 import S3
from shifted_clock import words_of_a_shifted_clock
from trusted import TrustedFleet

from edge_runtime.bundle.folder import Bundle
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.storage.queries import attempts_of
from server.trust.folder import FOLDER

KILLS = int(os.environ.get("COVEY_FAILOVER_KILLS", "4"))
ROUNDS = 6
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


class Apart(TrustedFleet):
    """A fleet with an authority, and two machines that may be its server.

    Args:
        hours: how far the clock of each machine is off.
    """

    def __init__(self, root: Path, bundle: Bundle, ledger: str, blobs: str, hours: tuple[int, int]) -> None:
        root.mkdir()
        super().__init__(root, bundle)
        self._machines = (self.state_dir, root / "other")
        shutil.copytree(self.state_dir / FOLDER, self._machines[1] / FOLDER)
        self._hours, self._http_port = hours, free_port()
        self.said = {"join_port": free_port()}
        self._flags = ("--ledger", ledger, "--blobs", blobs, "--standby", "--http-port", str(self._http_port))
        self._machine = 0
        keep_address(root / "reader", ledger)

    def prefix(self, name: str) -> list[str]:
        hours = self._hours[self._machine]
        return words_of_a_shifted_clock(self.root, 3600.0 * hours) if name == "server" and hours else []

    def stand_by(self, machine: int) -> Process:
        """Start the server of a machine."""
        self._machine, self.state_dir = machine, self._machines[machine]
        ports = ("--mqtt-port", str(self.port), "--join-port", str(self.said["join_port"]))
        return self.stay(*ports, *self._flags)

    def is_served_by(self, machine: int) -> None:
        """Let commands speak to a machine's server from now on."""
        self.state_dir = self._machines[machine]

    def is_finished(self) -> bool:
        with contextlib.closing(Ledger(self.root / "reader" / LEDGER_FILE, read_only=True)) as ledger:
            attempts = attempts_of(ledger, "job")
        return sum(attempt.state == "aggregated" for attempt in attempts) == ROUNDS

    def adapter(self) -> str:
        with contextlib.closing(Ledger(self.root / "reader" / LEDGER_FILE, read_only=True)) as ledger:
            closed = [attempt for attempt in attempts_of(ledger, "job") if attempt.state == "aggregated"]
        assert [attempt.index for attempt in closed] == list(range(ROUNDS)), "none was lost, and none counted twice"
        assert all(attempt.reports == len(NAMES) for attempt in closed)
        return str(closed[-1].result_sha256)

    def submit_job(self) -> None:
        self.submit("job", rounds=ROUNDS, **FIELDS)


def is_serving(server: Process) -> bool:
    assert server.popen.poll() is None, server.stderr.read_text()
    return any("api" in line for line in server.events())


@contextlib.contextmanager
def apart(root: Path, bundle: Bundle, ledger: str, blobs: str, hours: tuple[int, int]) -> Iterator[Apart]:
    fleet = Apart(root, bundle, ledger, blobs, hours)
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.mark.parametrize("hours", [(0, -5), (5, 0)])
def test_a_server_with_another_clock_and_another_disk_goes_on_where_one_was_killed(
    tiny_export: object,
    database: Postgres,
    s3: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hours: tuple[int, int],
) -> None:
    assert callable(tiny_export)
    bundle = tiny_export("bert", levels=(2, 3))
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    of_test = f"apart{hours[0]}{hours[1]}".replace("-", "m")
    with apart(tmp_path / "quiet", bundle, database.new_database(f"{of_test}q"), s3.new_bucket(), (0, 0)) as quiet:
        only = quiet.stand_by(0)
        wait_for(lambda: is_serving(only), "server")
        for seed, name in enumerate(NAMES):
            quiet.join(name, seed)
            quiet.start(name)
        quiet.submit_job()
        wait_for(quiet.is_finished, "end of the job", 600)
        expected = quiet.adapter()

    seed = random.SystemRandom().randrange(2**32)
    rng, kills, machine, blobs = random.Random(seed), 0, 0, s3.new_bucket()
    with apart(tmp_path / "killed", bundle, database.new_database(of_test), blobs, hours) as fleet:
        at_work = fleet.stand_by(0)
        wait_for(lambda: is_serving(at_work), "server")
        fleet.join("a", 0)
        fleet.start("a")
        while not fleet.is_finished():
            waiting = fleet.stand_by(1 - machine)
            if kills:
                time.sleep(rng.uniform(0, 2.0))  # not to wait for something: to kill at any moment
            at_work.popen.send_signal(signal.SIGKILL)
            at_work.popen.wait()
            at_work, machine = waiting, 1 - machine
            wait_for(lambda: is_serving(at_work), "server that takes over")  # noqa: B023 called at once
            fleet.is_served_by(machine)
            kills += 1
            if kills == 1:  # members of the first server are the second one's, and it takes new ones
                for index, name in enumerate(NAMES[1:], 1):
                    fleet.join(name, index)
                    fleet.start(name)
                fleet.submit_job()
            if kills >= KILLS:
                wait_for(fleet.is_finished, "end of the job", 600)
        assert fleet.adapter() == expected, f"seed {seed}"
        assert kills > 1
        kept = {name.partition("/")[0] for name in s3.objects(blobs)}
        assert "blobs" in kept
        assert not [path for folder in ("blobs", "deltas") for path in fleet.root.glob(f"*/{folder}/*")]
