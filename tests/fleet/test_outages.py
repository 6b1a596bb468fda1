"""PostgreSQL and the bucket go away while rounds are at work, and come back: the job ends on the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import Fleet, Process, free_port, wait_for, write_job
from hybrid_job import FIELDS, NAMES
from postgres import Postgres
from s3 import S3

from edge_runtime.bundle.folder import Bundle
from edge_runtime.errors import StorageError
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.storage.queries import attempts_of

OUTAGES = int(os.environ.get("COVEY_OUTAGES", "6"))
ROUNDS = 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


class Kept(Fleet):
    """A fleet whose server is started again where it ends, as systemd does it."""

    def __init__(self, root: Path, bundle: Bundle, ledger: str, blobs: str) -> None:
        root.mkdir()
        super().__init__(root, bundle, free_port(), external=False)
        ports = ("--mqtt-port", str(self.port), "--http-port", str(free_port()))
        self._flags = (*ports, "--ledger", ledger, "--blobs", blobs)
        self.server = self.stay(*self._flags)
        self.restarts = 0
        keep_address(root / "reader", ledger)
        wait_for(lambda: any("api" in line for line in self.server.events()), "server")
        for seed, name in enumerate(NAMES):
            self.device(name, seed, stays=True)
        job = write_job(self.root, rounds=ROUNDS, **FIELDS)
        self.covey("job", "submit", str(job), "--bundle", str(bundle.path))

    def keep_up(self) -> None:
        """Start the server again where it has ended, as a lost transaction ends it; any other end is a fault."""
        code = self.server.popen.poll()
        if code is not None:
            assert code == StorageError.exit_code, self.server.stderr.read_text()
            assert "damaged" not in self.server.stderr.read_text()
            self.server = self.stay(*self._flags)
            self.restarts += 1

    def closed(self) -> list[tuple[int, str]]:
        self.keep_up()
        with contextlib.closing(Ledger(self.root / "reader" / LEDGER_FILE, read_only=True)) as ledger:
            attempts = attempts_of(ledger, "job")
        assert all(attempt.reports == len(NAMES) for attempt in attempts if attempt.state == "aggregated")
        return [(attempt.index, str(attempt.result_sha256)) for attempt in attempts if attempt.state == "aggregated"]

    def has_closed(self, rounds: int) -> bool:
        return len(self.closed()) >= rounds

    def said(self) -> str:
        logs = [process.stderr for process in self.processes if _is_server(process)]
        return "".join(log.read_text() for log in logs)


def _is_server(process: Process) -> bool:
    return process.stdout.name.startswith("server.")


@contextlib.contextmanager
def kept(root: Path, bundle: Bundle, ledger: str, blobs: str) -> Iterator[Kept]:
    fleet = Kept(root, bundle, ledger, blobs)
    try:
        yield fleet
    finally:
        fleet.stop()


def test_what_goes_away_in_a_round_and_comes_back_changes_nothing(
    tiny_export: object, database: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(tiny_export)
    bundle = tiny_export("bert", levels=(2, 3))
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    with kept(tmp_path / "quiet", bundle, database.new_database("calm"), s3.new_bucket()) as quiet:
        wait_for(lambda: quiet.has_closed(ROUNDS), "end of the job", 600)
        expected = quiet.closed()
        assert quiet.restarts == 0

    def restart() -> None:
        database.stop("immediate")
        database.start()

    def stop(away_s: float) -> None:
        database.stop("fast")
        time.sleep(away_s)  # it is away for as long as this
        database.start()

    def no_bucket(away_s: float) -> None:
        s3.stop()
        time.sleep(away_s)
        s3.start()

    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    outages: list[Callable[[], None]] = [
        lambda: stop(rng.uniform(2.0, 6.0)),
        lambda: no_bucket(rng.uniform(2.0, 6.0)),
        restart,
        database.cut_sessions,
    ]
    with kept(tmp_path / "rough", bundle, database.new_database("rough"), s3.new_bucket()) as fleet:
        for number in range(OUTAGES):
            if fleet.has_closed(ROUNDS):
                break
            time.sleep(rng.uniform(0, 1.0))  # not to wait for something: to begin at any moment of a round
            outages[number % len(outages)]()
        wait_for(lambda: fleet.has_closed(ROUNDS), "end of the job", 600)
        assert fleet.closed() == expected, f"seed {seed}"
        assert [index for index, _ in expected] == list(range(ROUNDS)), "none was lost, and none counted twice"
        assert number >= 2, f"seed {seed}: the job was over too soon"
        assert "waiting: cannot" in fleet.said(), f"seed {seed}"
