"""Ledgers of earlier schema versions are upgraded when a server opens them: nothing is lost, and a copy is kept."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest
from old_ledgers import VERSIONS, Rows, rows_of, run_sql, shape_of, version_of, write_old_ledger
from repository import ROOT

from edge_runtime.errors import StorageError
from edge_runtime.protocol.step_rule import StepRule
from server.cli import main
from server.storage import queries
from server.storage.audit_queries import audit_of
from server.storage.audit_records import DONE, Asker
from server.storage.device_queries import devices_of, newest_profile, profiles_of, tags_of
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.schema import HEAD, revisions

if TYPE_CHECKING:
    from pathlib import Path

    from server.storage.records import AttemptRecord

KILLS = 20
"""Points at which an upgrade is killed."""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, version: int) -> Path:
    return write_old_ledger(tmp_path / "state" / LEDGER_FILE, version)


def upgraded(path: Path) -> Path:
    Ledger(path).close()
    return path


def copies_of(path: Path) -> list[Path]:
    """The whole copies that upgrades have left beside a ledger."""
    found = path.parent.glob(f"{path.name}.before-*")
    return sorted(copy for copy in found if ".partial" not in copy.name and not copy.name.endswith(("-wal", "-shm")))


def check_nothing_is_lost(before: Rows, after: Rows) -> None:
    """Every table, row and value of before is there; what was NULL or no column may have got a value."""
    for table, rows in before.items():
        assert len(rows) == len(after[table])
        kept = [{column: row[column] for column in rows[0]} for row in after[table]] if rows else []
        assert sorted(kept, key=repr) == rows


def test_every_row_and_value_is_still_there(old: Path) -> None:
    before = rows_of(old)
    assert {table: len(rows) for table, rows in before.items()}["rounds"] == 4  # it is no empty file
    check_nothing_is_lost(before, rows_of(upgraded(old)))


def test_an_upgraded_ledger_has_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    assert shape_of(upgraded(old)) == shape_of(upgraded(tmp_path / "new" / LEDGER_FILE))


def test_an_upgraded_ledger_answers_every_question(old: Path, version: int) -> None:
    with closing(Ledger(old)) as ledger:
        states = {name: job.state for name in queries.job_names(ledger) if (job := queries.find_job(ledger, name))}
        assert states == {"first": "finished", "second": "running", "third": "failed"}
        assert queries.newest_job(ledger) == "third"
        closed = queries.closed_rounds(ledger, "first")
        assert [(made.index, made.result_sha256[0], made.figures.split) for made in closed] == [
            (0, "1", 2),
            (1, "2", 2),
        ]
        attempts = [(made.index, made.attempt, made.state) for made in queries.rounds_of(ledger, "first")]
        assert attempts == [(0, 0, "abandoned"), (0, 1, "aggregated"), (1, 0, "aggregated")]
        check_plans(queries.attempts_of(ledger, "first"), version)
        attempt = queries.open_attempt(ledger, "second")
        assert attempt is not None
        assert attempt.offers == {"pi-a": "offered", "pi-b": "reported"}
        reports = queries.taken_reports(ledger, "first", 1, 0)
        assert {device: report.examples for device, report in reports.items()} == {"pi-a": 12, "pi-b": 12}
        assert reports["pi-a"].front_s == (None if version == 1 else pytest.approx(0.01))
        deltas = queries.taken_deltas(ledger, "first", 1, 0)
        assert [delta.layers for delta in deltas.values()] == ([[0, 2]] if version >= 3 else [])
        assert queries.outcome_of(ledger, "first", 0, 0, "pi-a") == ("refused", None)
        traffic = queries.traffic_of(ledger, "first")
        assert traffic.bytes_down == pytest.approx(400 if version < 3 else 800 / 3)
        devices = {device.device: device for device in devices_of(ledger)}
        assert devices["pi-a"].birth["machine"] == "aarch64"
        assert devices["phone"].ineligible == ("not charging" if version >= 5 else None)
        choice = queries.last_choice(ledger, "first", 1, "pi-a")
        assert (choice is not None and choice[1].arm is not None) == (version >= 4)
        bandit = queries.bandit_state(ledger, "first")
        assert (bandit is not None and bandit.loss == 0.5) == (version >= 4)
        assert len(profiles_of(ledger, "pi-a")) == (2 if version >= 5 else 0)
        assert (newest_profile(ledger, "default", "pi-a") is not None) == (version >= 5)


def check_plans(attempts: list[AttemptRecord], version: int) -> None:
    """Every round has the split and rule with which it was trained, at the learning rate of its place in the job."""
    assert [attempt.plan.split for attempt in attempts] == [2, 2, 2]
    rules = [StepRule(back_perturbations=8, learning_rate=rate) for rate in (0.05, 0.05, 0.025)]
    assert [attempt.plan.rule for attempt in attempts] == rules
    assert [attempt.plan.levels for attempt in attempts] == [{"jetson": 3} if version >= 3 else {}] * 3


def test_a_server_writes_on_in_an_upgraded_ledger(old: Path) -> None:
    with closing(Ledger(old)) as ledger:
        ledger.submit_job("fourth", "default", "b" * 64, None, {"rounds": 2}, priority=0, after="second")
        assert [job.name for job in queries.jobs_of(ledger, "default")] == ["first", "second", "third", "fourth"]
        ledger.begin_job("fourth", "default", "b" * 64, {"rounds": 2})
        ledger.open_round("fourth", 0, 0, '{"split": 2, "rule": {}}', "0" * 64, None, {"pi-a": None, "jetson": 3})
        ledger.take_report("fourth", 0, 0, "jetson", {"delta_sha256": "d" * 64, "layers": "[1]", "examples": 3})
        ledger.choices_made("fourth", 0, 0, {})
        ledger.bandit_is("fourth", b"\x80")
        ledger.device_state("default", "phone", "online", "in use")
        ledger.device_reason("default", "phone", "no space left on device")
        ledger.tag_device("default", "pi-a", "kitchen")
        entry = ledger.audit_begun(Asker("alice", "browser", "192.0.2.7"), "submit", "fourth")
        ledger.audit_ended(entry, DONE)
        assert ledger.profile_received("default", "pi-b", "9" * 64, None, ["refused"])
    with closing(Ledger(old, read_only=True)) as again:
        assert queries.taken_deltas(again, "fourth", 0, 0)["jetson"].examples == 3
        assert tags_of(again, "default") == {"pi-a": {"kitchen"}}
        newest, *older = audit_of(again)
        assert (newest.actor, newest.way, newest.address) == ("alice", "browser", "192.0.2.7")
        assert all(entry.outcome == DONE and entry.way in ("socket", "token") for entry in older)
        phone = next(device for device in devices_of(again) if device.device == "phone")
        assert (phone.ineligible, phone.reason) == ("in use", "no space left on device")


# -- the copy ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_before_is_kept_and_opening_again_changes_nothing(old: Path, version: int) -> None:
    before = rows_of(old)
    (copy,) = copies_of(upgraded(old))
    assert (version_of(copy), rows_of(copy)) == (version, before)
    after = rows_of(old)
    upgraded(old)
    assert copies_of(old) == [copy]
    assert rows_of(old) == after


def test_the_copy_can_be_put_back_and_upgraded_again(old: Path, tmp_path: Path) -> None:
    (copy,) = copies_of(upgraded(old))
    back = tmp_path / "back" / LEDGER_FILE
    back.parent.mkdir()
    shutil.copy(copy, back)
    assert rows_of(upgraded(back)) == rows_of(old)


def test_an_older_copy_is_never_overwritten(tmp_path: Path) -> None:
    path = write_old_ledger(tmp_path / LEDGER_FILE, 3)
    (copy,) = copies_of(upgraded(path))
    copy.write_bytes(b"the only copy of something")
    path.unlink()
    upgraded(write_old_ledger(path, 4))
    assert copy.read_bytes() == b"the only copy of something"
    (other,) = (found for found in copies_of(path) if found != copy)
    assert version_of(other) == 4


def test_where_no_copy_can_be_kept_nothing_is_upgraded(tmp_path: Path) -> None:
    """A file-size limit stands for a full disk: the ledger's own pages still fit, the copy's do not."""
    path = write_old_ledger(tmp_path / LEDGER_FILE, 5)
    before = rows_of(path)
    program = (
        "import resource, signal, sys; from pathlib import Path; from server.storage.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from edge_runtime.errors import StorageError\n"
        "try: Ledger(Path(sys.argv[1]))\n"
        "except StorageError as error: print(error.what, '|', error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=with_packages(),
        check=True,
    )
    assert LEDGER_FILE in done.stdout
    assert "|" in done.stdout
    assert (version_of(path), rows_of(path)) == (5, before)
    assert copies_of(path) == []
    check_nothing_is_lost(before, rows_of(upgraded(path)))


# -- kills -------------------------------------------------------------------------------------------------------------


def with_packages() -> dict[str, str]:
    """The environment of a process that imports the packages that are tested."""
    paths = [path for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_a_process_killed_at_any_point_leaves_the_old_or_the_new_ledger(tmp_path: Path) -> None:
    old = write_old_ledger(tmp_path / LEDGER_FILE, 1)
    before = rows_of(old)
    program = ROOT / "tests" / "support" / "upgrade_kills.py"
    done = subprocess.run(
        [sys.executable, str(program), str(old), str(tmp_path / "kills"), str(KILLS)],
        capture_output=True,
        text=True,
        env=with_packages(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, *lines = done.stdout.splitlines()
    assert int(total) > KILLS
    whole = rows_of(tmp_path / "kills" / "whole" / LEDGER_FILE)
    seen = set()
    for line in lines:
        killed = json.loads(line)
        assert killed["status"] == -signal.SIGKILL
        path = tmp_path / "kills" / str(killed["statement"]) / LEDGER_FILE
        is_old = version_of(path) == 1
        seen.add(is_old)
        if is_old:
            assert rows_of(path) == before  # and no column more
        for copy in copies_of(path):
            assert rows_of(copy) == before
        assert rows_of(upgraded(path)) == whole
        assert rows_of(copies_of(path)[0]) == before
        with closing(Ledger(path, read_only=True)) as ledger:
            assert queries.newest_job(ledger) == "third"
    assert seen == {True, False}  # kills before and after the upgrade was committed


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_command_that_only_reads_does_not_upgrade(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(StorageError) as caught:
        Ledger(old, read_only=True)
    assert str(old) in caught.value.what
    assert "covey serve" in caught.value.hint
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert main(["job", "list", "--state-dir", str(old.parent)]) == StorageError.exit_code
    assert old.read_bytes() == before
    assert copies_of(old) == []


@pytest.mark.parametrize(
    "statements",
    [
        ["PRAGMA user_version = 99"],
        ["UPDATE alembic_version SET version_num = '9999'"],
        ["PRAGMA user_version = 99", "UPDATE alembic_version SET version_num = '9999'"],
        ["UPDATE alembic_version SET version_num = 'a-branch'"],
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_ledger_of_a_newer_covey_is_refused_and_not_touched(
    tmp_path: Path, statements: list[str], *, read_only: bool
) -> None:
    path = upgraded(tmp_path / LEDGER_FILE)
    run_sql(path, *statements)
    before = rows_of(path)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            Ledger(path, read_only=read_only)
        assert str(path) in caught.value.what
        assert caught.value.hint
    assert rows_of(path) == before
    assert copies_of(path) == []


def test_an_old_ledger_with_a_damaged_page_is_not_upgraded(tmp_path: Path) -> None:
    path = write_old_ledger(tmp_path / LEDGER_FILE, 5)
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"damaged|cannot read"):
        Ledger(path)
    assert path.read_bytes() == bytes(data)
    assert copies_of(path) == []


# -- Alembic -----------------------------------------------------------------------------------------------------------


def test_the_revision_that_is_written_down_is_the_newest_one() -> None:
    assert revisions()[0] == HEAD
    assert sorted(int(revision) for revision in revisions()) == list(range(1, int(HEAD) + 1))


def test_a_ledger_of_this_version_needs_no_alembic(tmp_path: Path) -> None:
    """Alembic takes half a second to import; every command that reads a ledger would pay it."""
    path = upgraded(tmp_path / LEDGER_FILE)
    program = (
        "import sys; from pathlib import Path; from server.storage.ledger import Ledger\n"
        "Ledger(Path(sys.argv[1])); Ledger(Path(sys.argv[1]), read_only=True); Ledger(Path(sys.argv[1] + '.new'))\n"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, env=with_packages(), check=True)
