"""The ledger in PostgreSQL: connections are cut, the database restarts, two servers want it, texts are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from old_ledgers import as_version_11
from postgres import Postgres
from profiles import PROFILE
from sqlalchemy import text

from edge_runtime.errors import StorageError
from server.errors import JobError
from server.serving.options import ServeOptions
from server.serving.stores import StoppedError, locked_stores
from server.storage import columns, queries, registry_queries, schema
from server.storage.ledger import Ledger, Waiting
from server.storage.ledger_address import LEDGER_FILE, address_beside, keep_address
from server.storage.postgres_database import LOST_S, PostgresDatabase

NOT_WAITING = Waiting(0.0, time.sleep)


@pytest.fixture
def state_dir(database: Postgres, tmp_path: Path) -> Path:
    """A state directory whose ledger is in a schema of its own."""
    keep_address(tmp_path, database.schema_for(tmp_path))
    return tmp_path


@pytest.fixture
def ledger(state_dir: Path) -> Iterator[Ledger]:
    opened = Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    yield opened
    opened.close()


def state_of(ledger: Ledger) -> str:
    found = registry_queries.find_device(ledger, "f", "pi")
    assert found is not None
    return found.state


def test_reads_and_writes_go_on_where_the_sessions_are_cut(ledger: Ledger, database: Postgres) -> None:
    for state in ("online", "busy"):
        ledger.device_state("f", "pi", state)
        database.cut_sessions()
        assert state_of(ledger) == state
        database.cut_sessions()
    ledger.device_state("f", "pi", "offline")
    assert state_of(ledger) == "offline"
    assert database.sessions() == 1


@pytest.mark.timeout(600)
def test_a_ledger_waits_for_a_database_that_restarts(ledger: Ledger, database: Postgres) -> None:
    ledger.device_state("f", "pi", "online")
    database.stop("immediate")
    begun = threading.Event()

    def start() -> None:
        begun.wait()
        database.start()

    starter = threading.Thread(target=start)
    starter.start()
    begun.set()
    try:
        ledger.device_state("f", "pi", "busy")
    finally:
        starter.join()
    assert state_of(ledger) == "busy"


def test_what_was_to_be_written_together_is_not_written_in_part(ledger: Ledger, database: Postgres) -> None:
    ledger.device_state("f", "pi", "online")

    def half() -> None:
        with ledger.transaction():
            ledger.device_reason("f", "pi", "first")
            database.cut_sessions()
            ledger.device_reason("f", "pi", "second")

    with pytest.raises(StorageError, match="cannot write the ledger"):
        half()
    found = registry_queries.find_device(ledger, "f", "pi")
    assert found is not None
    assert found.reason is None
    ledger.device_reason("f", "pi", "later")
    assert database.sessions() == 1


def test_one_server_has_it_and_a_standby_gets_it_when_it_ends(ledger: Ledger, state_dir: Path) -> None:
    with pytest.raises(JobError, match="another server uses the ledger"):
        Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    reader = Ledger(state_dir / LEDGER_FILE, read_only=True)  # commands may look meanwhile
    with pytest.raises(StorageError):
        reader.device_state("f", "pi", "online")
    reader.close()
    looks = 0

    def pause(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            ledger.close()

    standby = Ledger(state_dir / LEDGER_FILE, waiting=Waiting(None, pause))
    assert looks == 3
    standby.close()


def test_who_comes_back_late_writes_nothing(ledger: Ledger, state_dir: Path, database: Postgres) -> None:
    """A server whose session was lost, and with it the lock, while another server took the ledger over."""
    kept: list[Ledger] = []

    class Late(PostgresDatabase):
        def _come_back(self) -> None:
            kept.append(Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING))
            super()._come_back()

    moments = iter(range(0, 10**9, 1000))
    ledger.close()
    late = Ledger.__new__(Ledger)
    late.database = Late(
        database.schema_for(state_dir),
        read_only=False,
        exclusive=True,
        sleep=lambda _seconds: None,
        clock=lambda: float(next(moments)),
    )
    late.device_state("f", "pi", "online")
    database.cut_sessions()
    with pytest.raises(StorageError, match="another server has taken the ledger") as raised:
        late.device_state("f", "pi", "busy")
    assert raised.value.hint is not None
    assert "nothing was written" in raised.value.hint
    assert state_of(kept[0]) == "online"
    kept[0].close()


def test_texts_that_postgres_refuses_are_kept_without_nul(ledger: Ledger) -> None:
    ledger.device_born("f", "pi", '{"covey_version":"1\\u0000x","tags":["a","b"]}')
    ledger.device_state("f", "pi", "online", "a\x00b")
    found = registry_queries.find_device(ledger, "f", "pi")
    assert found is not None
    assert found.ineligible == "a\N{REPLACEMENT CHARACTER}b"
    assert registry_queries.versions_of(ledger, "f") == ["1\N{REPLACEMENT CHARACTER}x"]
    assert registry_queries.count_devices(ledger, "f", registry_queries.DeviceFilter(tag="b")) == 1
    assert registry_queries.count_devices(ledger, "f", registry_queries.DeviceFilter(tag="c")) == 0
    assert registry_queries.count_devices(ledger, "f", registry_queries.DeviceFilter(text="P")) == 1


@given(st.text(st.sampled_from('\\u0n"\x00x'), max_size=12))
def test_json_stays_json_without_nul(written: str) -> None:
    encoded = msgspec.json.encode({"a": written}).decode()
    cleaned = columns.without_nul(encoded)
    assert cleaned is not None
    assert msgspec.json.decode(cleaned) == {"a": written.replace("\x00", "\N{REPLACEMENT CHARACTER}")}


def test_numbers_of_64_bits_are_kept(ledger: Ledger) -> None:
    ledger.begin_job("job", "f", "0" * 64, {}, None)
    ledger.open_round("job", 0, 0, "{}", "0" * 64, None, {"pi": None})
    for _ in range(3):
        ledger.add_bytes("job", 0, 0, "pi", up=2**40, down=1)
    (attempt,) = ledger.database.rows(text("SELECT bytes_up FROM offers"))
    assert attempt["bytes_up"] == 3 * 2**40


def test_a_newer_schema_and_missing_tables_are_refused(ledger: Ledger, state_dir: Path) -> None:
    ledger.database.write(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="schema version"):
        Ledger(state_dir / LEDGER_FILE, read_only=True)
    ledger.database.write(text("DROP TABLE audit"))


def test_an_older_schema_is_upgraded_by_who_holds_the_ledger_alone(ledger: Ledger, state_dir: Path) -> None:
    ledger.begin_job("job", "f", "0" * 64, {}, None)
    as_version_11(ledger)
    looks = 0

    def pause(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        for read_only in (True, False):
            with pytest.raises(StorageError, match="is of an older Covey"):
                Ledger(state_dir / LEDGER_FILE, read_only=read_only)
        ledger.close()

    upgraded = Ledger(state_dir / LEDGER_FILE, waiting=Waiting(None, pause))
    assert looks == 1
    assert queries.job_names(upgraded) == ["job"]
    upgraded.open_round("job", 0, 0, "{}", "0" * 64, None, {"pi": None})
    upgraded.close()
    Ledger(state_dir / LEDGER_FILE, read_only=True).close()


def test_an_upgrade_that_is_cut_off_leaves_the_old_schema(
    ledger: Ledger, state_dir: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_version_11(ledger)
    ledger.close()
    with monkeypatch.context() as patched:
        patched.setattr(schema, "_mark", lambda _connection: database.cut_sessions())
        with pytest.raises(StorageError):
            Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    with pytest.raises(StorageError, match="is of an older Covey"):
        Ledger(state_dir / LEDGER_FILE, read_only=True)
    Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING).close()


@pytest.mark.timeout(600)
def test_a_database_that_stays_away_ends_the_server_and_the_next_start_goes_on(
    state_dir: Path, database: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0

    def sleep(_seconds: float) -> None:
        nonlocal now
        now += 60.0

    ledger = Ledger.__new__(Ledger)
    ledger.database = PostgresDatabase(
        database.schema_for(state_dir), read_only=False, exclusive=True, sleep=sleep, clock=lambda: now
    )
    ledger.device_state("f", "pi", "online")
    database.stop("immediate")
    try:
        with pytest.raises(StorageError, match="cannot reach the ledger") as raised:
            ledger.device_state("f", "pi", "busy")
        assert now == LOST_S
        assert "waiting: cannot reach the ledger" in caplog.text
        assert raised.value.exit_code == 8
        with pytest.raises(StorageError, match="cannot reach the ledger"):
            ledger.device_state("f", "pi", "busy")  # it has been given up
        ledger.close()
    finally:
        database.start()
    after = Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    assert state_of(after) == "online"
    after.close()


def test_there_is_no_ledger_for_who_only_reads(state_dir: Path) -> None:
    with pytest.raises(JobError, match="there is no ledger in postgresql://"):
        Ledger(state_dir / LEDGER_FILE, read_only=True)


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        (("/covey?", "/nowhere?"), "does not exist", "permissions"),
        (("postgres@", "nobody@"), "nobody", "permissions"),
        ((":{port}/", ":1/"), "cannot reach", "check that the database runs"),
    ],
)
def test_what_keeps_from_a_database_is_named(
    database: Postgres, tmp_path: Path, change: tuple[str, str], said: str, hint: str
) -> None:
    old, new = change[0].format(port=database.port), change[1]
    keep_address(tmp_path, database.schema_for(tmp_path).replace(old, new))
    with pytest.raises(StorageError, match=said) as raised:
        Ledger(tmp_path / LEDGER_FILE)
    assert raised.value.hint is not None
    assert hint in raised.value.hint


def test_what_the_database_refuses_is_said_at_once_and_not_waited_for(database: Postgres, tmp_path: Path) -> None:
    keep_address(tmp_path, database.schema_for(tmp_path).replace("postgres@", "nobody@"))

    def never(_seconds: float) -> None:
        raise AssertionError("nobody waits")

    with pytest.raises(StorageError, match="nobody"):
        Ledger(tmp_path / LEDGER_FILE, waiting=Waiting(None, never))


def test_a_schema_that_is_not_there_is_named(database: Postgres, tmp_path: Path) -> None:
    keep_address(tmp_path, f"{database.address()}?options=-csearch_path%3Dnowhere")
    with pytest.raises(StorageError, match="schema") as raised:
        Ledger(tmp_path / LEDGER_FILE, waiting=NOT_WAITING)
    assert raised.value.hint is not None
    assert "CREATE SCHEMA" in raised.value.hint


def options_of(database: Postgres, state_dir: Path) -> ServeOptions:
    return ServeOptions(state_dir=state_dir, ledger=database.schema_for(state_dir), standby=True)


def test_a_standby_that_is_told_to_stop_ends_without_a_word_of_damage(
    ledger: Ledger, state_dir: Path, database: Postgres
) -> None:
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return looks > 1

    with pytest.raises(StoppedError), locked_stores(options_of(database, state_dir), should_stop):
        pass
    assert looks == 2
    ledger.device_state("f", "pi", "online")


def test_an_address_that_has_never_worked_is_not_kept(database: Postgres, tmp_path: Path) -> None:
    options = ServeOptions(state_dir=tmp_path, ledger=database.address("nowhere"))
    with pytest.raises(StorageError, match="nowhere"), locked_stores(options, lambda: False):
        pass
    assert address_beside(tmp_path / LEDGER_FILE) is None


def test_after_a_ledger_was_given_up_every_call_says_why(ledger: Ledger, state_dir: Path, database: Postgres) -> None:
    """Not that it is damaged: the operator would restore a copy over a sound ledger."""
    ledger.close()
    moments = iter(range(0, 10**9, 1000))
    late = PostgresDatabase(
        database.schema_for(state_dir),
        read_only=False,
        exclusive=True,
        sleep=lambda _seconds: None,
        clock=lambda: float(next(moments)),
    )
    database.cut_sessions()
    other = Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    for _ in range(3):
        with pytest.raises(StorageError, match="has taken the ledger"):
            late.rows(text("SELECT 1 FROM jobs"))
        with pytest.raises(StorageError, match="has taken the ledger"), late.transaction():
            pass
    other.close()
    late.close()


def test_a_profile_with_nul_breaks_no_filter(ledger: Ledger) -> None:
    profile = msgspec.structs.replace(PROFILE, facts=msgspec.structs.replace(PROFILE.facts, board="a\x00b"))
    ledger.device_born("f", "pi", "{}")
    ledger.profile_received("f", "pi", "0" * 64, profile, [])
    found = registry_queries.DeviceFilter(board="a\N{REPLACEMENT CHARACTER}b")
    assert registry_queries.count_devices(ledger, "f", found) == 1
