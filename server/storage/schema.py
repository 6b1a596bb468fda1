"""Creates and upgrades the ledger's schema with Alembic. An upgrade keeps a copy, and is one transaction.

Ledgers from before Alembic carry their version as SQLite's ``user_version``, 1 to 5: the first five revisions.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import sync_directory, sync_file
from server.storage.sqlite_file import copy_file
from server.storage.tables import METADATA
from server.storage.transactions import begun

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0012"
"""The newest revision in migrations/versions. It is written down here so that a ledger that has it needs no Alembic."""
_LOG = logging.getLogger(__name__)
_MIGRATIONS = Path(__file__).parent / "migrations"
_BEFORE_ALEMBIC = 5
"""The last version that is known by ``user_version`` alone."""
_ALEMBIC_VERSION = Table(  # as Alembic makes it
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def _config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration."""
    from alembic.config import Config  # noqa: PLC0415 half a second, for upgrades only

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def revisions() -> list[str]:
    """Return the revisions in migrations/versions, newest first."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 as in _config

    return [found.revision for found in ScriptDirectory.from_config(_config()).walk_revisions()]


def _stamped(connection: Connection) -> str | None:
    """Return the revision that Alembic's table has; None: there is no such table, or nothing in it."""
    if not inspect(connection).has_table(_ALEMBIC_VERSION.name):
        return None
    found = connection.execute(select(_ALEMBIC_VERSION.c.version_num)).scalar()
    return None if found is None else str(found)


def revision_of(connection: Connection) -> str | None:
    """Return a ledger's revision; None: it is of no version that this Covey knows."""
    version = _user_version(connection)
    found = _stamped(connection)
    if found == HEAD and version == int(HEAD):
        return HEAD
    if found is None and 1 <= version <= _BEFORE_ALEMBIC:
        found = f"{version:04}"
    return found if found in revisions() and version <= int(HEAD) else None


def _user_version(connection: Connection) -> int:
    """Return SQLite's number of a file's version; PostgreSQL has none, and no ledger in it is older than Alembic."""
    if connection.dialect.name != "sqlite":
        return int(_stamped(connection) or 0)
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def is_new(connection: Connection) -> bool:
    """Whether a file has no schema at all: it was just made, or is empty."""
    has_tables = bool(inspect(connection).get_table_names())
    return not has_tables and _user_version(connection) == 0


def check_version(connection: Connection, place: str) -> bool:
    """Whether a ledger is of an older version.

    Args:
        connection: to the ledger.
        place: the ledger, as messages name it.

    Raises:
        StorageError: it is of a version that this Covey does not know.
    """
    found = revision_of(connection)
    if found is None:
        raise StorageError(
            f"{place} has schema version {_user_version(connection)}, this Covey knows {int(HEAD)} and older ones",
            "use the Covey that wrote it, or another --state-dir or --ledger",
        )
    return found != HEAD


def create(connection: Connection) -> None:
    """Write the newest schema to a new file, in one transaction."""
    with begun(connection):
        METADATA.create_all(connection)
        _ALEMBIC_VERSION.create(connection)
        connection.execute(insert(_ALEMBIC_VERSION).values(version_num=HEAD))
        _mark(connection)


def upgrade(connection: Connection, path: Path | None) -> None:
    """Upgrade an older ledger to the newest schema, after a copy of a file was made.

    A process that is killed in the middle leaves the old schema; the next start begins again.

    Args:
        connection: to the ledger.
        path: the file; the copy is beside it, ``ledger.sqlite.before-0007``. None: it is in PostgreSQL, whose
            operator makes copies.

    Raises:
        StorageError: the copy cannot be written.
    """
    from alembic import command  # noqa: PLC0415 as in _config

    before = revision_of(connection)
    copy = None if path is None else _keep_copy(path)
    with begun(connection):
        if _stamped(connection) is None:
            command.stamp(_config(connection), before or "base")
        command.upgrade(_config(connection), "head")
        _mark(connection)
    kept = "no copy was made" if copy is None else f"as it was, it is in {copy}"
    _LOG.warning("the ledger was upgraded from version %s to %s; %s", before, HEAD, kept)


def _mark(connection: Connection) -> None:
    """Write the version where older Coveys look for it: they refuse a newer one by name."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {int(HEAD)}")


def _keep_copy(path: Path) -> Path:
    """Copy a ledger beside itself; a copy of an earlier attempt at the same upgrade is never overwritten."""
    target = path.with_name(f"{path.name}.before-{HEAD}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.before-{HEAD}.{number}")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        copy_file(path, partial)
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
