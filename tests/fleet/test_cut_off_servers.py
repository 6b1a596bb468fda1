"""A server that is cut off from PostgreSQL, and from nothing else: the standby goes on, and the first does no more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Fleet, Process, free_port, has_mosquitto, mosquitto, wait_for, write_job
from hybrid_job import FIELDS, NAMES
from postgres import Postgres
from relay import relay_to

from edge_runtime.bundle.folder import Bundle
from edge_runtime.errors import StorageError
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import attempts_of
from server.storage.records import AttemptRecord

ROUNDS = 12
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(3000),
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed"),
]


class Pair(Fleet):
    """Devices and two servers, as on two machines that share a disk: each reaches the database over its own way."""

    def __init__(self, root: Path, bundle: Bundle, port: int, database: str) -> None:
        super().__init__(root, bundle, port, external=True)
        self._ledger = f"postgresql://postgres@/{database}"  # libpq takes host and port from the environment

    def stand_by(self) -> Process:
        ports = {"--broker": f"mqtt://127.0.0.1:{self.port}", "--http-port": str(free_port())}
        flags = [word for pair in ports.items() for word in pair]
        return self.stay(*flags, "--ledger", self._ledger, "--standby")

    def begin(self) -> None:
        for seed, name in enumerate(NAMES):
            self.device(name, seed, stays=True)
        job = write_job(self.root, rounds=ROUNDS, **FIELDS)
        self.covey("job", "submit", str(job), "--bundle", str(self.bundle.path))

    def closed(self) -> list[AttemptRecord]:
        with contextlib.closing(Ledger(self.state_dir / LEDGER_FILE, read_only=True)) as ledger:
            return [attempt for attempt in attempts_of(ledger, "job") if attempt.state == "aggregated"]

    def adapter(self) -> str:
        closed = self.closed()
        assert [attempt.index for attempt in closed] == list(range(ROUNDS)), "none was lost, and none counted twice"
        assert all(attempt.reports == len(NAMES) for attempt in closed)
        return str(closed[-1].result_sha256)


def is_serving(server: Process) -> bool:
    return any("api" in line for line in server.events())


@contextlib.contextmanager
def pair(root: Path, bundle: Bundle, database: Postgres, name: str) -> Iterator[Pair]:
    root.mkdir()
    database.new_database(name)
    with mosquitto(root / "broker") as port:
        fleet = Pair(root, bundle, port, name)
        try:
            yield fleet
        finally:
            fleet.stop()


def test_a_standby_goes_on_where_a_server_is_cut_off_from_the_database(
    tiny_export: object, database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to the database takes the bytes of both sides and passes none on: TCP tells nobody of it."""
    assert callable(tiny_export)
    bundle = tiny_export("bert", levels=(2, 3))
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(database.port))
    with pair(tmp_path / "quiet", bundle, database, "whole") as quiet:
        only = quiet.stand_by()
        wait_for(lambda: is_serving(only), "server")
        quiet.begin()
        wait_for(lambda: len(quiet.closed()) == ROUNDS, "end of the job", 600)
        expected = quiet.adapter()

    with relay_to(database.port) as relay, pair(tmp_path / "cut", bundle, database, "cut") as fleet:
        monkeypatch.setenv("PGPORT", str(relay.port))
        first = fleet.stand_by()
        wait_for(lambda: is_serving(first), "first server")
        monkeypatch.setenv("PGPORT", str(database.port))
        second = fleet.stand_by()
        fleet.begin()
        wait_for(lambda: len(fleet.closed()) > 0, "first round", 600)
        relay.fall_silent()
        began = time.monotonic()
        wait_for(lambda: is_serving(second), "standby at work", 600)
        took_s = time.monotonic() - began
        done = len(first.events())
        wait_for(lambda: len(fleet.closed()) == ROUNDS, "end of the job", 600)
        assert fleet.adapter() == expected
        relay.speak()
        wait_for(lambda: first.popen.poll() is not None, "end of the first server", 600)
        assert first.popen.poll() == StorageError.exit_code
        assert "has taken the ledger" in first.stderr.read_text()
        assert "has not answered for" in first.stderr.read_text()
        assert [line for line in first.events()[done:] if line.get("event") in ("round_opened", "round_closed")] == []
        assert second.popen.poll() is None
        assert took_s < 300.0, "it takes half a minute, and the time in which a server starts"
