"""Servers whose clocks are hours apart, with one ledger in PostgreSQL: times, numbers and serials go by its clock."""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from postgres import Postgres
from releasing import new_trust, sha

from edge_runtime.protocol.signed import decode_envelope
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.releases.statement import Release, decode_signed, decode_statement
from server.serving.options import ServeOptions
from server.serving.security import open_security, signing_member
from server.storage import audit_queries, queries, registry_queries
from server.storage.audit_records import Asker
from server.storage.ledger import Ledger, Waiting
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.trust.folder import FOLDER

HOURS_S = [0.0, -5 * 3600.0, 5 * 3600.0]
"""How far each of three servers' clocks is off."""
real_time = time.time


@contextmanager
def server_on(database: Postgres, root: Path, number: int, offset_s: float) -> Iterator[tuple[Ledger, Path]]:
    """Open the ledger as a server does, on a machine with this clock and a state directory of its own."""
    state_dir = root / f"server-{number}"
    keep_address(state_dir, database.schema_for(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real_time() + offset_s)
        patch.setattr(time, "time_ns", lambda: int((real_time() + offset_s) * 1e9))
        with closing(Ledger(state_dir / LEDGER_FILE, waiting=Waiting(0.0, time.sleep))) as ledger:
            yield ledger, state_dir


IN_TURN = [0, 1, 0, 2, 1, 2, 0]
"""Which of them is the server, one after the other."""


def in_turn(database: Postgres, root: Path) -> Iterator[tuple[Ledger, Path]]:
    for number in IN_TURN:
        with server_on(database, root, number, HOURS_S[number]) as server:
            yield server


def test_what_is_entered_has_the_times_of_one_clock(database: Postgres, tmp_path: Path) -> None:
    for index, (ledger, _) in enumerate(in_turn(database, tmp_path)):
        ledger.audit_begun(Asker("maria", "socket"), "stop", f"job {index}")
        ledger.device_state("f", f"pi-{index}", "online")
        ledger.begin_job(f"job-{index}", "f", "0" * 64, {}, None)
        assert abs(ledger.now_s() - real_time()) < 60.0
    with server_on(database, tmp_path, 0, 0.0) as (ledger, _):
        entries = audit_queries.audit_of(ledger, most=100)[::-1]
        times = [entry.at for entry in entries]
        assert [entry.subject for entry in entries] == [f"job {index}" for index in range(len(IN_TURN))]
        assert times == sorted(times)
        times += [
            device.last_seen
            for device in registry_queries.devices_after(ledger, "f", registry_queries.DeviceFilter(), "", 100)
        ]
        assert queries.job_names(ledger) == [f"job-{index}" for index in range(len(IN_TURN))]
    for time_of_it in times:
        entered = dt.datetime.fromisoformat(time_of_it).replace(tzinfo=dt.timezone.utc)
        assert abs(entered.timestamp() - real_time()) < 300.0


@pytest.mark.parametrize(("offset_s", "said"), [(-18_000.0, "18000 s behind"), (18_000.0, "18000 s ahead of")])
def test_a_clock_that_is_off_is_named(
    database: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture, offset_s: float, said: str
) -> None:
    with server_on(database, tmp_path, 0, 0.0):
        assert "clock" not in caplog.text
    with server_on(database, tmp_path, 1, offset_s):
        assert f"this machine's clock is {said} that of postgresql://" in caplog.text


def with_one_trust(database: Postgres, root: Path) -> Iterator[tuple[Ledger, ServeOptions]]:
    """Yield the servers in turn, each with a copy of the fleet's keys as they were at first."""
    new_trust(root / "first")
    for ledger, state_dir in in_turn(database, root):
        if not (state_dir / FOLDER).exists():
            shutil.copytree(root / "first" / FOLDER, state_dir / FOLDER)
        yield ledger, ServeOptions(state_dir=state_dir)


def test_message_numbers_ascend_whichever_machine_is_the_server(database: Postgres, tmp_path: Path) -> None:
    """Devices take no message whose number is below one that they have seen."""
    numbers: list[int] = []
    for ledger, options in with_one_trust(database, tmp_path):
        member = signing_member(options, open_security(options, ledger), ledger.shared_clock_s)
        assert member is not None
        sealed = [member.signer.seal(hello_topic("default"), b"{}") for _ in range(3)]
        numbers += [decode_envelope(payload).sequence for payload in sealed]
    assert numbers == sorted(set(numbers))


def test_releases_of_one_content_never_go_back(database: Postgres, tmp_path: Path) -> None:
    """Devices take no release whose serial is below one that they have seen."""
    serials = []
    for ledger, options in with_one_trust(database, tmp_path):
        security = open_security(options, ledger)
        assert security is not None
        of_this_server = set()
        for _ in range(2):
            security.releases.take("bundle", "reviews", sha("content"))
            signed = decode_signed(security.releases.release_of(sha("content")) or b"", "the release")
            of_this_server.add(decode_statement(signed.statement, Release, "the release").serial)
        assert len(of_this_server) == 1
        serials += list(of_this_server)
    assert serials == sorted(serials)
