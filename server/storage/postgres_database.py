"""The ledger in PostgreSQL: one connection, which comes back where it was lost, and never writes beside another server.

A server holds PostgreSQL's advisory lock for as long as its connection lives, and writes over this connection alone.
So whoever takes the lock over can be sure that the server before it writes nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from edge_runtime.errors import CoveyError, StorageError
from server.errors import JobError
from server.storage.database import Database
from server.storage.ledger_address import shown
from server.storage.schema import check_version, create, is_new, upgrade
from server.storage.tables import CLOCK, METADATA
from server.storage.transactions import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Executable

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_LOCK = "hashtextextended('covey ledger ' || current_schema(), 0)"
_GONE_S = 15
"""Seconds after which either side takes a connection without an answer for lost."""
_CONNECT_S = 10
_AGAIN_S = 1.0
LOST_S = 300.0
"""Seconds for which a server waits for a database that went away, before it ends."""
_CLOCKS_DIFFER_S = 60.0
"""Seconds between two clocks from which on it is said."""
_FULL = ("53100",)
_NOT_ALLOWED = ("28000", "28P01", "42501", "3D000", "25006")
_FOR_A_WHILE = ("starting up", "shutting down", "recovery", "too many", "terminating")
"""Words of refusals that end by themselves."""
_TAKEN_OVER = "another server has taken the ledger {place} over"
_UNDONE = "nothing of what was to be written together was written; start the server again"
_LEAVE = "nothing was written; the other server goes on, and this one can wait for its turn (covey serve --standby)"


class PostgresDatabase(Database):
    """The ledger in one schema of a PostgreSQL database. Safe to use from several threads.

    Args:
        address: ``postgresql://…``, as libpq takes it.
        read_only: for commands that only read.
        exclusive: whether this is the one server that writes; see the file's first lines.
        wait_s: seconds to wait for another server that has it, and for a database that is not there; None: for ever.
        sleep: waits; gets seconds. May raise to end the waiting.
        clock: seconds of a monotonic clock.

    Raises:
        StorageError: the database cannot be reached or used, or the ledger has a newer schema.
        JobError: ``read_only``, and there is no ledger; or another server has it.
    """

    is_shared = True

    def __init__(
        self,
        address: str,
        *,
        read_only: bool,
        exclusive: bool = False,
        wait_s: float | None = 0.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.place = shown(address)
        self._read_only, self._exclusive = read_only, exclusive
        self._sleep, self._clock = sleep, clock
        self._depth, self._ahead_s = 0, 0.0
        self._given_up: StorageError | None = None
        try:
            url = sqlalchemy.make_url(address).set(drivername="postgresql+psycopg")
            self._engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=_CONNECT_ARGS)
        except (sqlalchemy.exc.ArgumentError, ValueError, ImportError) as error:
            raise _cannot_use(self.place, error) from error
        sqlalchemy.event.listen(self._engine, "connect", _prepare)
        try:
            with self.reading():
                self._connect(wait_s, wait_s)
                self._open()
        except BaseException:
            self.close()
            raise

    # -- the connection ---------------------------------------------------------------------------------------------

    def _connect(self, absent_s: float | None, held_s: float | None, *, is_new: bool = True) -> None:
        """Connect, and take the lock where this is the server; wait for both.

        Args:
            absent_s: seconds to wait for a database that cannot be reached; None: for ever.
            held_s: seconds to wait for another server's end; None: for ever.
            is_new: whether what the database refuses is a mistake, and no matter of time.

        Raises:
            StorageError, JobError: see the class.
        """
        began, has_said = self._clock(), False
        limit_s: float | None
        problem: CoveyError
        while True:
            try:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._require_schema()
                self._take_time()
                if self._read_only:
                    self._connection.exec_driver_sql("SET default_transaction_read_only = on")
                if (
                    not self._exclusive
                    or self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar_one()
                ):
                    return
                limit_s, problem = (
                    held_s,
                    JobError(
                        f"another server uses the ledger {self.place}",
                        "end it first; or wait for its turn with covey serve --standby",
                    ),
                )
                self._connection.close()
            except DBAPIError as error:
                limit_s, problem = absent_s, self.failed(error.orig, "reach")
                if is_new and _is_refusal(error.orig):
                    raise problem from error
            if limit_s is not None and self._clock() - began >= limit_s:
                raise problem
            if not has_said:
                _LOG.warning("waiting: %s", problem)
                has_said = True
            self._sleep(_AGAIN_S)

    def _require_schema(self) -> None:
        """Check that the schema of the address is there: PostgreSQL takes the name of one that is not."""
        if self._connection.exec_driver_sql("SELECT current_schema()").scalar() is None:
            raise StorageError(
                f"the schema that the address of the ledger {self.place} names is not there",
                "make it: psql -c 'CREATE SCHEMA covey'",
            )

    def _take_time(self) -> None:
        """Ask the database for its time, which goes on here by a clock that nobody sets."""
        asked = time.monotonic()
        (its_s,) = self._connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").one()
        self._ahead_s = float(its_s) - (asked + time.monotonic()) / 2.0
        self._connection.info[CLOCK] = self.now_s
        behind_s = self.now_s() - time.time()
        if abs(behind_s) > _CLOCKS_DIFFER_S:
            _LOG.warning(
                "this machine's clock is %.0f s %s that of %s, which is used for what the ledger has; set it (NTP)",
                abs(behind_s),
                "behind" if behind_s > 0 else "ahead of",
                self.place,
            )

    def now_s(self) -> float:
        """See Database: the clock of the database's machine, since each server's own may be another."""
        return time.monotonic() + self._ahead_s

    def _open(self) -> None:
        begins = is_new(self._connection)
        if begins and self._read_only:
            raise JobError(f"there is no ledger in {self.place}", "covey serve --ledger makes one")
        if begins:
            create(self._connection)
        elif check_version(self._connection, self.place):
            if not self._exclusive:  # another server may be at work on it
                raise StorageError(
                    f"the ledger {self.place} is of an older Covey",
                    "covey serve upgrades it when it starts; make a copy before (pg_dump)",
                )
            upgrade(self._connection, None)
        if missing := METADATA.tables.keys() - set(sqlalchemy.inspect(self._connection).get_table_names()):
            raise self.damaged(f"it has no table {', '.join(sorted(missing))}")

    def close(self) -> None:
        """Close the connection."""
        if hasattr(self, "_connection"):
            with contextlib.suppress(DBAPIError):
                self._connection.close()
        self._engine.dispose()

    def _come_back(self) -> None:
        """Connect anew after the connection was lost.

        Raises:
            StorageError: the database stays away, or another server has taken the ledger over meanwhile.
        """
        _LOG.warning("the connection to the ledger %s was lost", self.place)
        with contextlib.suppress(DBAPIError):
            self._connection.close()
        try:
            self._connect(LOST_S, 2.0 * _GONE_S, is_new=False)
        except JobError as error:
            self._given_up = StorageError(_TAKEN_OVER.format(place=self.place), _LEAVE)
            raise self._given_up from error
        except StorageError as error:
            self._given_up = error
            raise
        _LOG.warning("the connection to the ledger %s is back", self.place)

    def _again_if_lost(self, act: Callable[[], T]) -> T:
        """Do something that a lost connection undoes; where it was lost, connect anew and do it once more.

        Within a transaction nothing is done again: what came before in it is undone.
        """
        if self._given_up is not None:
            raise self._given_up
        if self._connection.invalidated:  # SQLAlchemy's own way back would not take the lock
            if self._depth:
                raise StorageError(f"the connection to the ledger {self.place} was lost", _UNDONE)
            self._come_back()
        try:
            return act()
        except DBAPIError as error:
            if self._depth or not error.connection_invalidated:
                raise
            self._come_back()
            return act()

    # -- errors -----------------------------------------------------------------------------------------------------

    def damaged(self, cause: str) -> StorageError:
        """See Database."""
        return StorageError(
            f"the ledger {self.place} is damaged: {cause}", "restore it from a copy (pg_restore), or use another one"
        )

    def failed(self, error: BaseException | None, verb: str) -> StorageError:
        """See Database."""
        code, text = _code(error), " ".join(str(error).split())
        what = f"cannot {verb} the ledger {self.place}: {text}"
        if code in _FULL:
            return StorageError(what, "free some space on the database's machine and start again; nothing was lost")
        if _is_refusal(error):
            return StorageError(what, "check user, password (~/.pgpass), name of the database, and its permissions")
        if code is None or code[:2] in ("08", "57"):
            return StorageError(what, "check that the database runs and can be reached; nothing was lost")
        return self.damaged(text)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self.failed(error.orig, "write") from error

    # -- statements -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See Database. A connection that is lost within a transaction ends it: nothing of it was written."""
        with self._lock, self._writing():
            self._again_if_lost(lambda: begin(self._connection))
            self._depth += 1
            try:
                yield
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._depth -= 1
            self._connection.exec_driver_sql("COMMIT")

    def write(self, statement: Executable, values: Mapping[str, object] | None = None) -> int:
        """See Database. Outside of a transaction it is one of its own, so that it can be done again."""

        def within() -> int:
            return int(self._connection.execute(statement, values or {}).rowcount)

        def alone() -> int:
            begin(self._connection)
            return within()

        with self._lock, self._writing():
            if self._depth:
                return self._again_if_lost(within)
            try:
                changed = self._again_if_lost(alone)
            except DBAPIError:
                self._roll_back()
                raise
            self._connection.exec_driver_sql("COMMIT")
            return changed

    def write_many(self, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
        """See Database."""
        with self._lock, self._writing():
            self._again_if_lost(lambda: super(PostgresDatabase, self).write_many(statement, rows))

    def _roll_back(self) -> None:
        if not self._connection.invalidated:
            with contextlib.suppress(DBAPIError):  # it may be lost now
                self._connection.exec_driver_sql("ROLLBACK")

    def rows(self, query: Executable, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """See Database."""
        with self._lock, self.reading():
            return self._again_if_lost(lambda: self._asked(query, values))


_CONNECT_ARGS = {
    "application_name": "covey",
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 4,
    "tcp_user_timeout": 1000 * _GONE_S,
}


def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 psycopg's connection
    """Let the server side notice a lost client as soon as the client side does, and read sums as numbers."""
    from psycopg.adapt import Loader  # noqa: PLC0415 only where there is such a ledger

    class Number(Loader):
        """PostgreSQL's sums and means: int, or float where there is a fraction."""

        def load(self, data: bytes | bytearray | memoryview) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdigit() else float(text)

    connection.adapters.register_loader("numeric", Number)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in (
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "4"),
            ("tcp_user_timeout", f"{1000 * _GONE_S}"),
        ):
            cursor.execute(f"SET {name} = {value}")
    connection.autocommit = False


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the database has answered that it does not let this user in; a connection's error has no code."""
    code, text = _code(error), str(error)
    if code is not None:
        return code in _NOT_ALLOWED
    return "FATAL" in text and not any(word in text for word in _FOR_A_WHILE)


def _code(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code of an error; None: the database has not answered."""
    code = getattr(error, "sqlstate", None)
    return None if code is None else str(code)


def _cannot_use(place: str, error: Exception) -> StorageError:
    if isinstance(error, ImportError):
        return StorageError(
            f"the ledger {place} needs psycopg, which is not installed", "pip install 'covey[postgres]'"
        )
    return StorageError(f"{place} is no address of a PostgreSQL database", "postgresql://user@host/database")
