"""All SQL is in server/storage: whoever changes a column finds every reader in one room."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SQL = re.compile(
    r"\bSELECT\b(?s:.){1,200}?\bFROM\b|\bINSERT\s+(?:OR\s+\w+\s+)?INTO\b|\bUPDATE\s+\w+\s+SET\b|\bDELETE\s+FROM\b"
    r"|\bPRAGMA\b|\bCREATE\s+(?:TABLE|INDEX)\b",
)
CONNECTION = re.compile(r"\bimport sqlite3\b|\bfrom sqlite3\b|\.database\b")
# These count questions, rows or bytes, damage a ledger, give it an unknown schema version, make one of an earlier
# version, or cut its sessions.
MAY_DAMAGE = {
    "benchmarks/speed/registry.py",
    "benchmarks/workers/counted_rounds.py",
    "tests/server/test_damaged_ledger.py",
    "tests/server/test_dashboard_pages.py",
    "tests/server/test_job.py",
    "tests/server/test_ledger_upgrade.py",
    "tests/server/test_messages_together.py",
    "tests/server/test_postgres_hangs.py",
    "tests/server/test_postgres_ledger.py",
    "tests/server/test_registry.py",
    "tests/server/test_texts_with_nul.py",
    "tests/support/old_ledgers.py",
    "tests/support/postgres.py",
    "tests/support/upgrade_kills.py",
}
# This file writes the statements down that it looks for.
NAME_IT_ONLY = {
    "tests/server/test_sql_lives_in_storage.py",
    "tests/test_house.py",
}  # files whose texts are patterns and examples


def offenders(root: Path) -> dict[str, str]:
    """Return each Python file outside server/storage that has SQL or a connection, and what was found in it."""
    found = {}
    for folder in ("server", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name.startswith("server/storage/") or name in NAME_IT_ONLY:
                continue
            text = path.read_text()
            if match := SQL.search(text) or CONNECTION.search(text):
                found[name] = match[0]
    return found


def test_no_other_room_knows_the_schema() -> None:
    assert (ROOT / "server" / "storage" / "queries.py").exists()
    assert set(offenders(ROOT)) == MAY_DAMAGE


@pytest.mark.parametrize(
    "text",
    [
        'rows = ledger.rows("SELECT state FROM jobs WHERE name = ?", name)',
        'rows = ledger.rows(\n    "SELECT device, level "\n    "FROM offers"\n)',
        "write(\"INSERT INTO jobs (name) VALUES ('x')\")",
        'write("INSERT OR REPLACE INTO bandits (job) VALUES (?)")',
        "write(\"UPDATE rounds SET state = 'open'\")",
        'write("DELETE FROM profiles")',
        'write("PRAGMA user_version = 7")',
        "import sqlite3",
        "ledger.database.rows(query)",
    ],
)
def test_the_pattern_finds_sql(tmp_path: Path, text: str) -> None:
    (tmp_path / "server" / "views").mkdir(parents=True)
    (tmp_path / "server" / "storage").mkdir()
    (tmp_path / "server" / "storage" / "queries.py").write_text(text)
    assert offenders(tmp_path) == {}
    (tmp_path / "server" / "views" / "made_up.py").write_text(text)
    assert set(offenders(tmp_path)) == {"server/views/made_up.py"}
