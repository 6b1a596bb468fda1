"""The ledger in PostgreSQL: one connection, which comes back where it was lost, and never writes beside another server.

A server holds PostgreSQL's advisory lock for as long as its connection lives, and writes over this connection alone.
So whoever takes the lock over can be sure that the server before it writes nothing more. A connection over which no
answer comes is given up: see answer_watch.py and postgres_session.py.
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
from server.storage.answer_watch import AnswerWatch, Heartbeat
from server.storage.database import Database
from server.storage.ledger_address import shown
from server.storage.postgres_errors import cannot_use, damaged, failed, is_refusal
from server.storage.postgres_session import ANSWER_S, BEAT_S, CONNECT_ARGS, GONE_S, guard, prepare
from server.storage.schema import check_version, create, is_new, upgrade
from server.storage.tables import CLOCK, METADATA
from server.storage.transactions import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Executable

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_LOCK = "hashtextextended('covey ledger ' || current_schema(), 0)"
_AGAIN_S = 1.0
LOST_S = 300.0
"""Seconds for which a server waits for a database that went away, before it ends."""
_CLOCKS_DIFFER_S = 60.0
"""Seconds between two clocks from which on it is said."""
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
        answer_s: seconds that an answer may take, beyond which the connection is given up.

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
        answer_s: float = ANSWER_S,
    ) -> None:
        super().__init__()
        self.place = shown(address)
        self._watch = AnswerWatch(self.place, answer_s, min(answer_s, GONE_S))
        self._descriptor, self._has_lost_it, self._is_closed = -1, False, False
        self._heartbeat: Heartbeat | None = None
        self._read_only, self._exclusive = read_only, exclusive
        self._sleep, self._clock = sleep, clock
        self._depth, self._ahead_s = 0, 0.0
        self._given_up: StorageError | None = None
        try:
            url = sqlalchemy.make_url(address).set(drivername="postgresql+psycopg")
            self._engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGS)
        except (sqlalchemy.exc.ArgumentError, ValueError, ImportError) as error:
            raise cannot_use(self.place, error) from error
        sqlalchemy.event.listen(self._engine, "connect", self._prepare)
        try:
            with self.reading():
                self._connect(wait_s, wait_s)
                self._open()
                if exclusive:
                    guard(self._connection)
                    self._heartbeat = Heartbeat(self._beat, BEAT_S)
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
                if self._has_connected():
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
                if is_new and is_refusal(error.orig):
                    raise problem from error
            finally:
                self._watch.end()
            if limit_s is not None and self._clock() - began >= limit_s:
                raise problem
            if not has_said:
                _LOG.warning("waiting: %s", problem)
                has_said = True
            self._sleep(_AGAIN_S)

    def _has_connected(self) -> bool:
        """Connect; return whether the lock is had too, where this is the server."""
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._require_schema()
        self._take_time()
        if self._read_only:
            self._connection.exec_driver_sql("SET default_transaction_read_only = on")
        if not self._exclusive:
            return True
        return bool(self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar_one())

    def _prepare(self, connection: Any, _record: object) -> None:  # noqa: ANN401 psycopg's connection
        """Set a new session up; from here on until it is used its answers are watched."""
        self._descriptor = connection.fileno()
        self._watch.begin(self._descriptor)
        prepare(connection)

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
        self._is_closed = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        is_alone = self._lock.acquire(timeout=GONE_S)  # the last beat may be at work
        try:
            if hasattr(self, "_connection"):
                with contextlib.suppress(DBAPIError):
                    self._connection.close()
            self._watch.close()
            self._engine.dispose()
        finally:
            if is_alone:
                self._lock.release()

    def _come_back(self) -> None:
        """Connect anew after the connection was lost.

        Raises:
            StorageError: the database stays away, or another server has taken the ledger over meanwhile.
        """
        _LOG.warning("the connection to the ledger %s was lost", self.place)
        self._has_lost_it = True
        with contextlib.suppress(DBAPIError):
            self._connection.close()
        try:
            self._connect(LOST_S, 2.0 * GONE_S, is_new=False)
        except JobError as error:
            self._given_up = StorageError(_TAKEN_OVER.format(place=self.place), _LEAVE)
            raise self._given_up from error
        except StorageError as error:
            self._given_up = error
            raise
        self._is_back()

    def _is_back(self) -> None:
        if self._exclusive:
            self._watched(lambda: guard(self._connection))
        self._has_lost_it = False
        _LOG.warning("the connection to the ledger %s is back", self.place)

    @property
    def is_lost(self) -> bool:
        """See Database."""
        return self._has_lost_it or self._given_up is not None or self._watch.is_late

    def is_ours(self) -> bool:
        """See Database. The lock is had for as long as the connection gives answers."""
        if self.is_lost or not self._lock.acquire(timeout=GONE_S):
            return False
        try:
            return self._answers()
        finally:
            self._lock.release()

    def _answers(self) -> bool:
        """Whether the connection is there; with the lock held."""
        if self._has_lost_it or self._connection.invalidated or self._connection.closed:
            return False
        try:
            self._watched(lambda: self._connection.exec_driver_sql("SELECT 1").scalar_one())
        except DBAPIError:
            return False
        return True

    def _beat(self) -> None:
        """See whether the connection is there, where nobody uses it; where it is not, look once for the database."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._is_closed or self._depth or self._given_up is not None or self._answers():
                return
            if not self._has_lost_it:
                _LOG.warning("the connection to the ledger %s was lost", self.place)
            self._has_lost_it = True
            with contextlib.suppress(DBAPIError):
                self._connection.close()
            with contextlib.suppress(CoveyError, DBAPIError):  # whoever writes next waits for it, and says why
                self._connect(0.0, 0.0, is_new=False)
                self._is_back()
        finally:
            self._lock.release()

    def _watched(self, act: Callable[[], T]) -> T:
        self._watch.begin(self._descriptor)
        try:
            return act()
        finally:
            self._watch.end()

    def _again_if_lost(self, act: Callable[[], T]) -> T:
        """Do something that a lost connection undoes; where it was lost, connect anew and do it once more.

        Within a transaction nothing is done again: what came before in it is undone.
        """
        if self._given_up is not None:
            raise self._given_up
        if self._has_lost_it or self._connection.invalidated:  # SQLAlchemy's own way back would not take the lock
            if self._depth:
                raise StorageError(f"the connection to the ledger {self.place} was lost", _UNDONE)
            self._come_back()
        try:
            return self._watched(act)
        except DBAPIError as error:
            if self._depth or not error.connection_invalidated:
                raise
            self._come_back()
            return self._watched(act)

    def _commit(self) -> None:
        self._watched(lambda: self._connection.exec_driver_sql("COMMIT"))

    # -- errors -----------------------------------------------------------------------------------------------------

    def damaged(self, cause: str) -> StorageError:
        """See Database."""
        return damaged(self.place, cause)

    def failed(self, error: BaseException | None, verb: str) -> StorageError:
        """See Database."""
        return failed(self.place, error, verb)

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
            self._commit()

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
            self._commit()
            return changed

    def write_many(self, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
        """See Database."""
        with self._lock, self._writing():
            self._again_if_lost(lambda: super(PostgresDatabase, self).write_many(statement, rows))

    def _roll_back(self) -> None:
        if not self._connection.invalidated:
            with contextlib.suppress(DBAPIError):  # it may be lost now
                self._watched(lambda: self._connection.exec_driver_sql("ROLLBACK"))

    def rows(self, query: Executable, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """See Database."""
        with self._lock, self.reading():
            return self._again_if_lost(lambda: self._asked(query, values))
