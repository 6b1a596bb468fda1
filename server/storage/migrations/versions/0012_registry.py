"""A registry of many devices: what a list is filtered by has columns, a table of all tags, and indexes."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_STANDINGS = {
    "free": "quarantine IS NULL AND ineligible IS NULL AND reason IS NULL",
    "ineligible": "ineligible IS NOT NULL",
    "resting": "reason IS NOT NULL",
    "quarantine": "quarantine IS NOT NULL",
}


def upgrade() -> None:
    """Add columns, table and indexes, and fill them from births, profiles and the operator's tags."""
    for name in ("covey_version", "board"):
        op.add_column("devices", sa.Column(name, _WORDS))
    op.create_table(
        "held_tags",
        *(sa.Column(name, _WORDS, primary_key=True) for name in ("fleet", "tag", "device")),
    )
    _fill()
    for name, column in (("state", "state"), ("version", "covey_version"), ("board", "board")):
        op.create_index(f"devices_by_{name}", "devices", ["fleet", column, "name"])
    for name, holds in _STANDINGS.items():
        where = sa.text(holds)
        op.create_index(f"devices_{name}", "devices", ["fleet", "name"], sqlite_where=where, postgresql_where=where)
    op.create_index("offers_of_devices", "offers", ["device"])


def _fill() -> None:
    db = op.get_bind()
    held = set()
    for fleet, name, birth in db.execute(sa.text("SELECT fleet, name, birth FROM devices")).fetchall():
        said = _read(birth)
        tags = [_text(db, tag) for tag in said.get("tags") or ()]
        held |= {(fleet, tag, name) for tag in tags if tag is not None}
        version, board = said.get("covey_version"), _board(db, fleet, name)
        values = {"fleet": fleet, "name": name, "version": _text(db, version)}
        change = "UPDATE devices SET covey_version = :version, board = :board WHERE fleet = :fleet AND name = :name"
        db.execute(sa.text(change), {**values, "board": board})
    given = (
        "SELECT device_tags.fleet, device_tags.tag, device_tags.device FROM device_tags "
        "JOIN devices ON devices.fleet = device_tags.fleet AND devices.name = device_tags.device"
    )
    held |= {tuple(row) for row in db.execute(sa.text(given))}
    for fleet, tag, device in sorted(held):
        row = {"fleet": fleet, "tag": tag, "device": device}
        db.execute(sa.text("INSERT INTO held_tags (fleet, tag, device) VALUES (:fleet, :tag, :device)"), row)


def _board(db: sa.Connection, fleet: str, device: str) -> str | None:
    newest = (
        "SELECT profile FROM profiles WHERE fleet = :fleet AND device = :device AND profile IS NOT NULL "
        "ORDER BY id DESC LIMIT 1"
    )
    found = db.execute(sa.text(newest), {"fleet": fleet, "device": device}).scalar()
    board = (_read(found).get("facts") or {}).get("board")
    return _text(db, board)


def _text(db: sa.Connection, value: object) -> str | None:
    """Return a text as the database takes it: PostgreSQL has no NUL in texts. None: it is none."""
    if not isinstance(value, str):
        return None
    return value.replace("\x00", "\N{REPLACEMENT CHARACTER}") if db.dialect.name == "postgresql" else value


def _read(document: str | bytes | memoryview | None) -> dict[str, Any]:
    """Return a JSON object; empty where there is none, or it is damaged: who reads it says so."""
    try:
        found = json.loads(bytes(document) if isinstance(document, memoryview) else document or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
