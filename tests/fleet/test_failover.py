"""Two servers with one ledger in PostgreSQL: where one is killed, the other goes on to the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Fleet, Process, free_port, has_mosquitto, mosquitto, wait_for, write_job
from hybrid_job import FIELDS, NAMES
from postgres import Postgres

from edge_runtime.bundle.folder import Bundle
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import attempts_of

KILLS = int(os.environ.get("COVEY_FAILOVER_KILLS", "20"))
FAR_FROM_USUAL_S = 120.0
"""A standby takes over within 15 s, most of which it needs to load its libraries; a slow machine needs more."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed"),
]


class Pair(Fleet):
    """Devices, and servers that share a state directory and a ledger: one is at work, the others wait."""

    def __init__(self, root: Path, bundle: Bundle, port: int, ledger: str) -> None:
        super().__init__(root, bundle, port, external=True)
        self.ledger, self.http_port = ledger, free_port()

    def start_server(self) -> Process:
        ports = {"--broker": f"mqtt://127.0.0.1:{self.port}", "--http-port": str(self.http_port)}
        flags = [word for pair in ports.items() for word in pair]
        return self.stay(*flags, "--ledger", self.ledger, "--standby")

    def start_devices(self) -> None:
        for seed, name in enumerate(NAMES):
            self.device(name, seed, stays=True)

    def submit(self) -> None:
        job = write_job(self.root, rounds=6, **FIELDS)
        self.covey("job", "submit", str(job), "--bundle", str(self.bundle.path))

    def state(self) -> str | None:
        """The job's state; None: no server answers at the moment, and the ledger does not know it."""
        found = self.lines("job", "show", "job")
        return str(found[-1]["state"]) if found else None


def is_serving(server: Process) -> bool:
    """Whether a server has taken over: it has said where it is found."""
    return any("api" in line for line in server.events())


def adapter_of(fleet: Pair) -> str:
    with contextlib.closing(Ledger(fleet.state_dir / LEDGER_FILE, read_only=True)) as ledger:
        attempts = attempts_of(ledger, "job")
    closed = [attempt for attempt in attempts if attempt.state == "aggregated"]
    assert [attempt.index for attempt in closed] == list(range(6)), "no round was lost, and none counted twice"
    assert all(attempt.reports == 3 for attempt in closed)
    return str(closed[-1].result_sha256)


@contextlib.contextmanager
def pair(root: Path, bundle: Bundle, database: Postgres, name: str) -> Iterator[Pair]:
    root.mkdir()
    with mosquitto(root / "broker") as port:
        fleet = Pair(root, bundle, port, database.new_database(name))
        try:
            yield fleet
        finally:
            fleet.stop()


def test_a_standby_goes_on_where_the_server_before_it_was_killed(
    tiny_export: object, database: Postgres, tmp_path: Path
) -> None:
    assert callable(tiny_export)
    bundle = tiny_export("bert", levels=(2, 3))
    with pair(tmp_path / "quiet", bundle, database, "quiet") as quiet:
        first = quiet.start_server()
        wait_for(lambda: is_serving(first), "first server")
        quiet.start_devices()
        quiet.submit()
        wait_for(lambda: quiet.state() == "finished", "end of the job", 600)
        expected = adapter_of(quiet)

    seed = random.SystemRandom().randrange(2**32)
    rng, kills, seconds, runs = random.Random(seed), 0, [], 0
    while kills < KILLS:
        runs += 1
        with pair(tmp_path / f"killed-{runs}", bundle, database, f"killed{runs}") as fleet:
            at_work = fleet.start_server()
            wait_for(lambda: is_serving(at_work), "server")  # noqa: B023 called at once
            waiting = fleet.start_server()
            fleet.start_devices()
            fleet.submit()
            while fleet.state() != "finished":
                time.sleep(rng.uniform(0, 2.0))  # not to wait for something: to kill at any moment
                if fleet.state() == "finished":
                    break
                at_work.popen.send_signal(signal.SIGKILL)
                killed_at = time.monotonic()
                wait_for(lambda: is_serving(waiting), "server that takes over")  # noqa: B023
                seconds.append(time.monotonic() - killed_at)
                kills += 1
                at_work, waiting = waiting, fleet.start_server()
            assert adapter_of(fleet) == expected, f"seed {seed}"
    assert max(seconds) < FAR_FROM_USUAL_S, f"seed {seed}: took over in {sorted(seconds)} s"
