"""Ledgers of earlier schema versions, from the SQL that Coveys of these versions left; raw looks into a ledger.

``tests/server/ledgers/ledger-N.sql`` is the dump of a file that the code of version N wrote: job ``first`` finished
after an abandoned and two aggregated attempts, ``second`` is in the middle of a round, ``third`` failed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from repository import ROOT
from sqlalchemy import text

from server.storage.ledger import Ledger

VERSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
_DUMPS = ROOT / "tests" / "server" / "ledgers"
Rows = dict[str, list[dict[str, Any]]]


def write_old_ledger(path: Path, version: int) -> Path:
    """Write the ledger of a schema version; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript((_DUMPS / f"ledger-{version}.sql").read_text())
        db.execute("PRAGMA journal_mode = WAL")  # as the server of that version did
    return path


def rows_of(path: Path) -> Rows:
    """Return every row of every table of a ledger, without Alembic's own, in the order of the keys."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        names = [row["name"] for row in found if row["name"] != "alembic_version"]
        return {
            name: sorted((dict(row) for row in db.execute(f"SELECT * FROM {name}")), key=repr)  # noqa: S608 its tables
            for name in names
        }


def run_sql(path: Path, *statements: str) -> None:
    """Run statements on a ledger's file, as somebody who is not Covey would."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def version_of(path: Path) -> int:
    """Return a file's ``user_version``."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def shape_of(path: Path) -> dict[str, Any]:
    """Return what a ledger's tables are: columns with affinity and whether they may be NULL, keys, references, indexes.

    The order of columns, their defaults and the spelling of their types are left out.
    """
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        shape: dict[str, Any] = {}
        for name in names:
            columns = db.execute(f"PRAGMA table_info({name})").fetchall()
            shape[name] = {
                "columns": {
                    column: (_affinity(kind), bool(key) or bool(needed)) for _, column, kind, needed, _, key in columns
                },
                "key": [row[1] for row in sorted(columns, key=lambda row: row[5]) if row[5]],
                "references": sorted(
                    (row[2], row[3]) for row in db.execute(f"PRAGMA foreign_key_list({name})").fetchall()
                ),
            }
        indexes = db.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        shape["indexes"] = sorted(tuple(row) for row in indexes.fetchall())
    return shape


def _affinity(kind: str) -> str:
    """Return the affinity that SQLite gives a declared type."""
    upper = kind.upper()
    if "INT" in upper:
        return "integer"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    return "blob" if "BLOB" in upper or not upper else "real"


def as_version_11(ledger: Ledger) -> None:
    """Take back what migration 0012 has added."""
    ledger.database.write(text("DROP TABLE held_tags"))
    for column in ("covey_version", "board"):  # their indexes go with them
        ledger.database.write(text(f"ALTER TABLE devices DROP COLUMN {column}"))
    for index in ("devices_by_state", "devices_free", "devices_ineligible", "devices_resting", "devices_quarantine"):
        ledger.database.write(text(f"DROP INDEX {index}"))
    ledger.database.write(text("DROP INDEX offers_of_devices"))
    ledger.database.write(text("UPDATE alembic_version SET version_num = '0011'"))
