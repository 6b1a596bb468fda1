"""Where a state directory's ledger is: in a file there, or in PostgreSQL at an address that a file there names."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError, storage_error, without_user
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

LEDGER_FILE = "ledger.sqlite"
ADDRESS_FILE = "ledger.url"
_SECRETS = {"password", "sslpassword"}
_SCHEMES = ("postgresql", "postgres")


def address_beside(path: Path) -> str | None:
    """Return the address of the ledger that a state directory has instead of a file; None: it has a file, or nothing.

    Args:
        path: the file's path.

    Raises:
        StorageError: the file with the address cannot be read.
    """
    note = path.with_name(ADDRESS_FILE)
    try:
        return note.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, note) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{note} is no text", "write the ledger's address into it: postgresql://…") from error


def has_ledger(path: Path) -> bool:
    """Whether a ledger is there: as a file at this path, or elsewhere at an address beside it."""
    return path.exists() or address_beside(path) is not None


def keep_address(state_dir: Path, address: str) -> bool:
    """Note in a state directory that its ledger is in PostgreSQL: every command finds it there from then on.

    Args:
        state_dir: the server's state directory.
        address: ``postgresql://user@host/database``.

    Returns:
        Whether it is noted now; False: it was before.

    Raises:
        ConfigError: it is no such address, it has a password, or the state directory has another ledger already.
        StorageError: the file cannot be written.
    """
    try:
        found = urllib.parse.urlsplit(address)
    except ValueError:
        found = urllib.parse.urlsplit("")
    if found.scheme not in _SCHEMES or "://" not in address:
        raise ConfigError(
            f"--ledger {shown(address)} is no address of a PostgreSQL database",
            "write postgresql://user@host/database; without --ledger the ledger is a file in --state-dir",
        )
    if found.password is not None or _SECRETS & urllib.parse.parse_qs(found.query).keys():
        raise ConfigError(
            f"--ledger {shown(address)} has a password, which every user of this machine could read",
            "put it into ~/.pgpass (mode 0600) or into the environment as PGPASSWORD",
        )
    path = state_dir / LEDGER_FILE
    if path.exists():
        raise ConfigError(
            f"{state_dir} has a ledger of its own, {LEDGER_FILE}",
            "give another --state-dir; jobs do not move from one ledger to another",
        )
    there = address_beside(path)
    if there is not None and there != address:
        raise ConfigError(
            f"the ledger of {state_dir} is {shown(there)}, not {shown(address)}",
            f"leave --ledger out; or give another --state-dir; or change {path.with_name(ADDRESS_FILE)}",
        )
    if there is not None:
        return False
    write_atomically(path.with_name(ADDRESS_FILE), f"{address}\n".encode())
    return True


def forget_address(state_dir: Path) -> None:
    """Remove the note of keep_address."""
    (state_dir / ADDRESS_FILE).unlink(missing_ok=True)


def shown(address: str) -> str:
    """Return an address as messages show it: without a password and without options."""
    if "://" not in address:
        return without_user(address).partition("?")[0]
    try:
        found = urllib.parse.urlsplit(address)
        host = found.hostname or ""
        port = "" if found.port is None else f":{found.port}"
    except ValueError:
        return "postgresql://…"
    user = f"{found.username}@" if found.username else ""
    address = f"{found.scheme}://{user}{host}{port}{found.path}"
    return without_user(address) if "@" in found.path else address
