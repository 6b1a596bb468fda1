"""Creates and upgrades the ledger's schema with Alembic. An upgrade keeps a copy, and is one transaction.

Ledgers from before Alembic carry their version as SQLite's ``user_version``, 1 to 5: the first five revisions.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import sync_directory, sync_file
from server.storage.tables import METADATA

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LOG = logging.getLogger(__name__)
_MIGRATIONS = Path(__file__).parent / "migrations"
_BEFORE_ALEMBIC = 5
"""The last version that is known by ``user_version`` alone."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Return the newest revision."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None  # noqa: S101 there are revisions
    return found


def revision_of(connection: Connection) -> str | None:
    """Return a ledger's revision; None: it is of no version that this Covey knows."""
    script = ScriptDirectory.from_config(_config())
    known = {revision.revision for revision in script.walk_revisions()}
    version = _user_version(connection)
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and 1 <= version <= _BEFORE_ALEMBIC:
        found = f"{version:04}"
    return found if found in known and version <= int(script.get_current_head() or 0) else None


def _user_version(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def is_new(connection: Connection) -> bool:
    """Whether a file has no schema at all: it was just made, or is empty."""
    has_tables = bool(sqlalchemy.inspect(connection).get_table_names())
    return not has_tables and _user_version(connection) == 0


def check_version(connection: Connection, path: Path) -> bool:
    """Whether a ledger is of an older version.

    Raises:
        StorageError: it is of a version that this Covey does not know.
    """
    found = revision_of(connection)
    if found is None:
        raise StorageError(
            f"{path} has schema version {_user_version(connection)}, this Covey knows {int(head())} and older ones",
            "use the Covey that wrote it, or another --state-dir",
        )
    return found != head()


def create(connection: Connection) -> None:
    """Write the newest schema to a new file, in one transaction."""
    with _one_transaction(connection):
        METADATA.create_all(connection)
        command.stamp(_config(connection), "head")
        _mark(connection)


def upgrade(connection: Connection, path: Path) -> None:
    """Upgrade an older ledger to the newest schema, after a copy of it was made.

    A process that is killed in the middle leaves the old schema; the next start begins again.

    Args:
        connection: to the ledger.
        path: the ledger; the copy is beside it, ``ledger.sqlite.before-0006``.

    Raises:
        StorageError: the copy cannot be written.
    """
    before = revision_of(connection)
    copy = _keep_copy(path)
    with _one_transaction(connection):
        if MigrationContext.configure(connection).get_current_revision() is None:
            command.stamp(_config(connection), before or "base")
        command.upgrade(_config(connection), "head")
        _mark(connection)
    _LOG.warning("the ledger %s was upgraded from version %s to %s; as it was, it is in %s", path, before, head(), copy)


def _mark(connection: Connection) -> None:
    """Write the version where older Coveys look for it: they refuse a newer one by name."""
    connection.exec_driver_sql(f"PRAGMA user_version = {int(head())}")


@contextlib.contextmanager
def _one_transaction(connection: Connection):  # type: ignore[no-untyped-def]  # noqa: ANN202 a context manager
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _keep_copy(path: Path) -> Path:
    """Copy a ledger beside itself; a copy of an earlier attempt at the same upgrade is never overwritten."""
    target = path.with_name(f"{path.name}.before-{head()}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.before-{head()}.{number}")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        sync_file(partial)
        partial.replace(target)
        sync_directory(path.parent)
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OSError):
            raise storage_error(error, target) from error
        raise StorageError(
            f"cannot copy {path} before its upgrade: {error}", "free some space, and start again"
        ) from error
    return target
