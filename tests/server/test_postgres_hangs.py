"""A PostgreSQL that says nothing: it is said and waited for, a standby takes over, who was cut off writes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fleets import wait_for
from postgres import Postgres
from relay import Relay, relay_to

from edge_runtime.errors import StorageError
from server.storage import postgres_database, registry_queries
from server.storage.answer_watch import AnswerWatch
from server.storage.ledger import Ledger, Waiting
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.storage.postgres_database import PostgresDatabase

NOT_WAITING = Waiting(0.0, time.sleep)
ENOUGH_S = 120.0
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def state_dir(database: Postgres, tmp_path: Path) -> Path:
    """A state directory whose ledger is in a schema of its own."""
    keep_address(tmp_path, database.schema_for(tmp_path))
    return tmp_path


@pytest.fixture
def relay(database: Postgres) -> Iterator[Relay]:
    with relay_to(database.port) as made:
        yield made


Opened = Callable[..., Ledger]


@pytest.fixture
def through(database: Postgres, state_dir: Path, relay: Relay) -> Iterator[Opened]:
    """Open the ledger as a server that reaches the database through the relay."""
    opened: list[Ledger] = []

    def through(answer_s: float = 1.0, **named: object) -> Ledger:
        ledger = Ledger.__new__(Ledger)
        address = database.schema_for(state_dir).replace(f":{database.port}/", f":{relay.port}/")
        ledger.database = PostgresDatabase(
            address,
            read_only=False,
            exclusive=True,
            answer_s=answer_s,
            **named,  # type: ignore[arg-type]
        )
        opened.append(ledger)
        return ledger

    yield through
    for ledger in opened:
        ledger.close()


def state_of(ledger: Ledger) -> str:
    found = registry_queries.find_device(ledger, "f", "pi")
    assert found is not None
    return found.state


def test_a_database_that_falls_silent_is_said_and_waited_for(
    through: Opened, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = through()
    ledger.device_state("f", "pi", "online")
    relay.fall_silent()

    def heal() -> None:
        wait_for(lambda: "waiting: cannot reach" in caplog.text or "was lost" in caplog.text, "loss", ENOUGH_S)
        relay.speak()
        relay.cut()  # the network says at last that the connections are gone

    healer = threading.Thread(target=heal)
    healer.start()
    ledger.device_state("f", "pi", "busy")
    healer.join()
    assert "has not answered for 1 s" in caplog.text
    assert "does not answer" in caplog.text
    assert state_of(ledger) == "busy"
    assert not ledger.is_lost()
    assert ledger.is_ours()


def test_a_transaction_that_gets_no_answer_ends_and_nothing_of_it_is_written(
    through: Opened, relay: Relay, state_dir: Path
) -> None:
    ledger = through()
    ledger.device_state("f", "pi", "online")

    def half() -> None:
        with ledger.transaction():
            ledger.device_state("f", "pi", "busy")
            relay.fall_silent()
            ledger.device_state("f", "pi", "offline")

    with pytest.raises(StorageError, match="cannot write the ledger"):
        half()
    relay.cut()
    after = Ledger(state_dir / LEDGER_FILE, read_only=True)
    found = registry_queries.find_device(after, "f", "pi")
    assert found is not None
    assert found.reason is None
    after.close()


def test_a_server_that_starts_while_the_database_is_silent_says_so(through: Opened, relay: Relay) -> None:
    relay.fall_silent()
    with pytest.raises(StorageError, match="cannot reach the ledger"):
        through()


def test_a_standby_takes_over_and_who_was_cut_off_writes_nothing(
    through: Opened, relay: Relay, state_dir: Path, database: Postgres
) -> None:
    """The relay takes the bytes of both sides and passes none on: TCP tells nobody that the other one is gone."""
    ledger = through(sleep=lambda _seconds: time.sleep(0.05))
    assert isinstance(ledger.database, PostgresDatabase)
    ledger.device_state("f", "pi", "online")
    with psycopg.connect(database.address(), autocommit=True) as other:  # PostgreSQL's own limit, but shorter
        idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'covey'"
        ledger.database._connection.exec_driver_sql("SET idle_session_timeout = '2s'")
        relay.fall_silent()
        wait_for(lambda: other.execute(idle).fetchone() == (0,), "end of the session", ENOUGH_S)
    standby = Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    standby.device_state("f", "pi", "busy")
    assert not ledger.is_ours()
    relay.speak()

    moments = iter(range(0, 10**9, 20))
    ledger.database._clock = lambda: float(next(moments))
    with pytest.raises(StorageError, match="has taken the ledger"):
        ledger.device_state("f", "pi", "offline")
    assert ledger.is_lost()
    assert state_of(standby) == "busy"
    standby.close()


def test_an_idle_server_notices_that_its_session_is_gone_and_comes_back(through: Opened, database: Postgres) -> None:
    ledger = through()
    assert isinstance(ledger.database, PostgresDatabase)
    database.cut_sessions()
    ledger.database._beat()
    assert database.sessions() == 1
    assert ledger.is_ours()
    ledger.database._beat()
    assert database.sessions() == 1


def test_an_idle_server_whose_ledger_was_taken_counts_as_lost_until_it_writes(
    through: Opened, database: Postgres, state_dir: Path
) -> None:
    moments = iter(range(0, 10**9, 20))
    ledger = through(sleep=lambda _seconds: None, clock=lambda: float(next(moments)))
    assert isinstance(ledger.database, PostgresDatabase)
    database.cut_sessions()
    standby = Ledger(state_dir / LEDGER_FILE, waiting=NOT_WAITING)
    ledger.database._beat()
    assert ledger.is_lost()
    assert not ledger.is_ours()
    with pytest.raises(StorageError, match="has taken the ledger"):
        ledger.device_state("f", "pi", "offline")
    standby.close()


def test_a_ledger_that_is_closed_stays_closed(through: Opened, database: Postgres) -> None:
    ledger = through()
    assert isinstance(ledger.database, PostgresDatabase)
    ledger.close()
    wait_for(lambda: database.sessions() == 0, "end of the session")
    ledger.database._beat()
    assert database.sessions() == 0


def test_the_server_s_session_is_limited_and_an_upgrade_is_not(
    through: Opened, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def noting(connection: object) -> bool:
        shown.append(connection.exec_driver_sql("SHOW statement_timeout").scalar_one())  # type: ignore[attr-defined]
        return plain(connection)  # type: ignore[arg-type]

    plain = postgres_database.is_new
    monkeypatch.setattr(postgres_database, "is_new", noting)
    ledger = through()
    assert isinstance(ledger.database, PostgresDatabase)
    limits = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
    show = ledger.database._connection.exec_driver_sql
    assert [show(f"SHOW {name}").scalar_one() for name in limits] == ["45s", "1min", "30s"]
    reader = Ledger(state_dir / LEDGER_FILE, read_only=True)
    assert isinstance(reader.database, PostgresDatabase)
    show = reader.database._connection.exec_driver_sql
    assert [show(f"SHOW {name}").scalar_one() for name in limits] == ["0", "0", "0"]
    reader.close()
    assert shown == ["0", "0"]


def test_a_table_that_somebody_keeps_locked_is_no_damage(through: Opened, state_dir: Path, database: Postgres) -> None:
    ledger = through(answer_s=60.0)
    assert isinstance(ledger.database, PostgresDatabase)
    ledger.database._connection.exec_driver_sql("SET statement_timeout = '500ms'")
    with psycopg.connect(database.schema_for(state_dir)) as other:
        other.execute("LOCK TABLE devices")
        with pytest.raises(StorageError, match="statement timeout") as raised:
            ledger.device_state("f", "pi", "online")
        other.rollback()
    assert "check that the database runs" in str(raised.value.hint)
    ledger.device_state("f", "pi", "online")


def test_who_is_answered_in_time_is_left_alone() -> None:
    now = 0.0
    watch = AnswerWatch("x", 1.0, 0.5, lambda: now)
    watch.begin(-1)
    now = 0.4
    assert not watch.is_late
    now = 0.6
    assert watch.is_late
    watch.end()
    assert not watch.is_late
    watch.close()
