"""Where a state directory's ledger is: `--ledger`, what it refuses, and what every command does with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.errors import ConfigError, StorageError
from server.cli import main
from server.storage.backup import create_backup
from server.storage.ledger import Ledger
from server.storage.ledger_address import ADDRESS_FILE, LEDGER_FILE, address_beside, has_ledger, keep_address, shown

ADDRESS = "postgresql://covey@db.example:5433/fleet?sslmode=verify-full"


def test_a_state_directory_remembers_its_ledger(tmp_path: Path) -> None:
    assert not has_ledger(tmp_path / LEDGER_FILE)
    keep_address(tmp_path, ADDRESS)
    keep_address(tmp_path, ADDRESS)
    assert address_beside(tmp_path / LEDGER_FILE) == ADDRESS
    assert has_ledger(tmp_path / LEDGER_FILE)
    with pytest.raises(ConfigError, match=r"is postgresql://covey@db\.example:5433/fleet, not postgresql://other/x"):
        keep_address(tmp_path, "postgresql://other/x")


def test_an_address_with_a_password_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a password") as raised:
        keep_address(tmp_path, "postgresql://covey:secret@db/fleet")
    assert "secret" not in str(raised.value)
    assert not (tmp_path / ADDRESS_FILE).exists()


@pytest.mark.parametrize("secret", ["password=x", "sslmode=require&sslpassword=x"])
def test_a_password_among_the_options_is_one_too(tmp_path: Path, secret: str) -> None:
    with pytest.raises(ConfigError, match="has a password"):
        keep_address(tmp_path, f"{ADDRESS}&{secret}")


@pytest.mark.parametrize(
    "address", ["postgresql://[", "sqlite:///x", "mysql://a/b", "x", "", "postgresql+psycopg://a/b"]
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a PostgreSQL database"):
        keep_address(tmp_path, address)


def test_jobs_do_not_move_from_a_file(tmp_path: Path) -> None:
    Ledger(tmp_path / LEDGER_FILE).close()
    with pytest.raises(ConfigError, match="has a ledger of its own"):
        keep_address(tmp_path, ADDRESS)


def test_a_note_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ADDRESS_FILE).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StorageError, match="is no text"):
        address_beside(tmp_path / LEDGER_FILE)


def test_what_is_shown_has_no_secret() -> None:
    assert shown("postgresql://u:p@h:1/d?password=x") == "postgresql://u@h:1/d"
    assert shown("postgresql://[") == "postgresql://…"


def test_a_backup_says_that_the_database_has_tools_of_its_own(tmp_path: Path) -> None:
    keep_address(tmp_path, ADDRESS)
    with pytest.raises(Exception, match="which covey backup does not copy"):
        create_backup(tmp_path, tmp_path / "out.tar")


def test_a_server_says_what_is_wrong_with_its_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(tmp_path / "state")
    code = main(["serve", "--state-dir", state, "--ledger", "mysql://a/b"])
    assert code == ConfigError.exit_code
    assert "no address of a PostgreSQL database" in capsys.readouterr().err
