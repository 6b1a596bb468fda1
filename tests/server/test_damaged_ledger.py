"""A damaged ledger: every command and every question ends with an answer, or an error that names the file."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, CoveyError, StorageError
from server.cli import main
from server.errors import JobError
from server.simulation.boards import modelled_profiles
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.storage import device_queries, queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE_BYTES = 4096
GOOD_CODES = (0, ConfigError.exit_code, StorageError.exit_code, JobError.exit_code)
VALUES: list[Any] = [
    b"\xff\xfe\x00",
    "",
    "{",
    "[" * 100_000,
    '{"rounds": "many", "capability": 5}',
    '{"rounds": 3, "steps": 2, "privacy": []}',
    "5",
    -5,
    2.5,
    "nan",
    2**62,
    b"\xc1",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a simulated job with a bandit: jobs, rounds, offers, choices, devices, profiles."""
    folder = tmp_path_factory.mktemp("sound")
    assert simulate(SimulateOptions(devices=5, rounds=3, cohort=3), state_dir=folder) is not None
    ledger = Ledger(folder / LEDGER_FILE)
    ledger.profile_received("simulated", "device", "0" * 64, modelled_profiles()[0], ["a remark"])
    ledger.profile_received("simulated", "device", "1" * 64, None, ["refused"])
    ledger.close()
    return folder


@pytest.fixture
def work(tmp_path: Path, sound: Path) -> Path:
    shutil.copytree(sound, tmp_path / "state")
    return tmp_path / "state"


def device_of(folder: Path) -> str:
    ledger = Ledger(folder / LEDGER_FILE, read_only=True)
    name = queries.offers_of(ledger, JOB_NAME)[0].device
    ledger.close()
    return name


def commands(folder: Path, device: str) -> list[tuple[int, str]]:
    """Run every command that reads a ledger; return exit codes and what they print."""
    found = []
    for words in (
        ["job", "list"],
        ["job", "show", JOB_NAME],
        ["job", "explain", "0", device],
        ["device", "list"],
        ["profile", "history", device],
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            found.append((main([*words, "--state-dir", str(folder)]), out.getvalue()))
    return found


def ask_everything(path: Path, device: str) -> None:
    """Do what a server does when it starts, and ask every question."""
    ledger = Ledger(path)
    asks: list[Callable[[], object]] = [
        lambda: ledger.begin_job("another", "default", "b" * 64, {"rounds": 2}),
        lambda: ledger.begin_job(JOB_NAME, "default", "b" * 64, {"rounds": 2}),
        *(
            lambda ask=ask: ask(ledger, JOB_NAME)  # type: ignore[misc]
            for ask in (
                queries.find_job,
                queries.closed_rounds,
                queries.rounds_of,
                queries.attempts_of,
                queries.open_attempt,
                queries.offers_of,
                queries.counted_reports,
                queries.last_round_per_device,
                queries.traffic_of,
                queries.passes_per_round,
                queries.plans_offered,
                queries.bandit_state,
            )
        ),
        *(lambda ask=ask: ask(ledger) for ask in (queries.job_names, queries.newest_job, device_queries.devices_of)),  # type: ignore[misc]
        *(
            lambda ask=ask: ask(ledger, JOB_NAME, 0, 0)  # type: ignore[misc]
            for ask in (queries.taken_reports, queries.taken_deltas, queries.taken_examples, queries.choices_of)
        ),
        lambda: queries.count_attempts(ledger, JOB_NAME, 0),
        lambda: queries.last_plan(ledger, JOB_NAME, 0),
        lambda: queries.outcome_of(ledger, JOB_NAME, 0, 0, device),
        lambda: queries.last_choice(ledger, JOB_NAME, 0, device),
        lambda: device_queries.newest_profile(ledger, "simulated", "device"),
        lambda: device_queries.fleets_with_profiles_of(ledger, "device"),
        lambda: device_queries.profiles_of(ledger, "device"),
        lambda: ledger.device_state("simulated", device, "online"),
        lambda: ledger.profile_received("simulated", "device", "2" * 64, None, []),
        lambda: ledger.choices_made(JOB_NAME, 7, 0, {device: b"x"}),
    ]
    try:
        for ask in asks:
            with contextlib.suppress(CoveyError):
                ask()
    finally:
        ledger.close()


def check(folder: Path, device: str) -> list[tuple[int, str]]:
    found = commands(folder, device)
    for code, printed in found:
        assert code in GOOD_CODES, printed
        assert "Traceback" not in printed
        if code == StorageError.exit_code:
            assert LEDGER_FILE in printed
            assert "what to do: " in printed
    with contextlib.suppress(CoveyError):
        ask_everything(folder / LEDGER_FILE, device)
    return found


def test_a_sound_ledger_answers_everything(work: Path) -> None:
    assert [code for code, _ in check(work, device_of(work))] == [0, 0, 0, 0, 0]


DAMAGE = st.one_of(
    st.tuples(st.just("fill"), st.integers(0, 10**6), st.sampled_from([0, 0xFF, 0x55])),
    st.tuples(st.just("flip"), st.integers(0, 10**9), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**9), st.just(0)),
    st.tuples(st.just("swap"), st.integers(0, 10**6), st.integers(0, 10**6)),
)


def damage(data: bytearray, kind: str, where: int, value: int) -> None:
    pages = len(data) // PAGE_BYTES
    if not pages:
        return

    def page(number: int) -> slice:
        start = number % pages * PAGE_BYTES
        return slice(start, start + PAGE_BYTES)

    if kind == "fill":
        data[page(where)] = bytes([value]) * PAGE_BYTES
    elif kind == "flip":
        data[where % len(data)] ^= value
    elif kind == "cut":
        del data[where % len(data) :]
    else:
        one, other = page(where), page(value)
        data[one], data[other] = data[other], data[one]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DAMAGE, min_size=1, max_size=4))
def test_damaged_pages_end_in_an_answer_or_an_error_that_names_the_ledger(
    tmp_path: Path, sound: Path, hurts: list[tuple[str, int, int]]
) -> None:
    data = bytearray((sound / LEDGER_FILE).read_bytes())
    for hurt in hurts:
        damage(data, *hurt)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / LEDGER_FILE).write_bytes(data)
    check(folder, device_of(sound))


def columns(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(table, row[1]) for table in tables for row in db.execute(f"PRAGMA table_info({table})")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_values_end_in_an_answer_or_an_error_that_names_the_ledger(
    tmp_path: Path, sound: Path, data: st.DataObject
) -> None:
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / LEDGER_FILE
    shutil.copy(sound / LEDGER_FILE, path)
    table, column = data.draw(st.sampled_from(columns(path)))
    value = data.draw(st.sampled_from(VALUES))
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.suppress(sqlite3.IntegrityError):
        # One row: keys are unique.
        statement = f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT min(rowid) FROM {table})"  # noqa: S608
        db.execute(statement, (value,))
        db.commit()
    check(path.parent, device_of(sound))


@pytest.mark.parametrize("table", ["jobs", "rounds", "offers", "devices", "choices", "bandits", "profiles"])
def test_a_missing_table_is_said(work: Path, table: str) -> None:
    device = device_of(work)
    with contextlib.closing(sqlite3.connect(work / LEDGER_FILE)) as db:
        db.execute(f"DROP TABLE {table}")
        db.commit()
    for code, printed in check(work, device):
        assert code == StorageError.exit_code
        assert f"has no table {table}" in printed
    with pytest.raises(StorageError, match=f"has no table {table}"):
        Ledger(work / LEDGER_FILE)


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ("UPDATE jobs SET config = '{\"rounds\":'", 0),
        ("UPDATE jobs SET config = CAST(x'ff7b7d' AS TEXT)", 0),
        ("UPDATE rounds SET plan = '{}'", 1),
        ("UPDATE choices SET choice = x'c1'", 2),
        ("UPDATE devices SET birth = '[]'", 3),
        ("UPDATE profiles SET remarks = 'x'", 4),
    ],
)
def test_damaged_json_is_said_with_file_and_remedy(work: Path, query: str, command: int) -> None:
    device = "device" if command == 4 else device_of(work)
    with contextlib.closing(sqlite3.connect(work / LEDGER_FILE)) as db:
        db.execute(query)
        db.commit()
    code, printed = commands(work, device)[command]
    assert code == StorageError.exit_code
    assert f"the ledger {work / LEDGER_FILE} is damaged" in printed or "cannot read the ledger" in printed
    assert "restore it from a backup" in printed


def test_a_server_finds_a_damaged_page_when_it_starts(work: Path) -> None:
    path = work / LEDGER_FILE
    data = bytearray(path.read_bytes())
    for page in range(len(data) // PAGE_BYTES - 3, len(data) // PAGE_BYTES):
        damage(data, "fill", page, 0xFF)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        Ledger(path)


@pytest.mark.parametrize("left", ["jobs/one/adapter/covey_job.json", "blobs/0123"])
def test_an_empty_ledger_beside_jobs_is_refused_and_not_begun_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / LEDGER_FILE
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_bytes(b"x")
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="is empty, but") as caught:
        Ledger(path)
    assert "restore it from a backup" in caught.value.hint
    assert path.stat().st_size == 0
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["job", "list", "--state-dir", str(tmp_path), "--format", "json"]) == StorageError.exit_code
    assert "is empty" in json.loads(out.getvalue())["error"]


def test_a_missing_ledger_beside_finished_jobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "one" / "adapter").mkdir(parents=True)
    for _ in range(2):  # the refusal leaves no file that would be taken for a ledger
        with pytest.raises(StorageError, match="is missing, but jobs/one/adapter"):
            Ledger(tmp_path / LEDGER_FILE)
    assert not (tmp_path / LEDGER_FILE).exists()


def test_an_empty_ledger_with_nothing_beside_it_is_begun(tmp_path: Path) -> None:
    """A server that was killed in its first moment has left one."""
    (tmp_path / LEDGER_FILE).write_bytes(b"")
    (tmp_path / "blobs").mkdir()
    ledger = Ledger(tmp_path / LEDGER_FILE)
    assert queries.job_names(ledger) == []
    ledger.close()


@pytest.mark.parametrize("how", ["removed", "replaced", "with its folder"])
def test_a_ledger_that_vanishes_while_it_is_in_use_is_said(tmp_path: Path, how: str) -> None:
    """SQLite would write on into a file that nobody will ever open again."""
    folder = tmp_path / "state"
    ledger = Ledger(folder / LEDGER_FILE)
    ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})
    if how == "with its folder":
        shutil.rmtree(folder)
    else:
        (folder / LEDGER_FILE).rename(tmp_path / "moved")
    if how == "replaced":
        Ledger(folder / LEDGER_FILE).close()
    with pytest.raises(StorageError, match="was removed, replaced or unmounted"):
        ledger.end_job("job", "finished", None)
    with pytest.raises(StorageError, match="was removed, replaced or unmounted"):
        ledger.choices_made("job", 0, 0, {})
    ledger.close()
