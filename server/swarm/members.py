"""The devices of a swarm: their names, and their keys and certificates where the fleet has an authority."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ConfigError, storage_error, wall
from edge_runtime.files.atomic import write_atomically
from edge_runtime.network.address import TlsFiles
from edge_runtime.trust.folder import AUTHORITY, SIGNING
from edge_runtime.trust.keys import certificate_pem, key_pem, key_sha256, new_key, serial_of
from edge_runtime.values import Name
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.trust_records import CertificateRecord
from server.trust.folder import open_trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.trust.folder import Trust

_ABOUT = "swarm.json"
_MAKE = "make them on the server: covey swarm --make-members --devices N --members DIR"


@dataclass(frozen=True)
class Member:
    """A device of the swarm.

    Attributes:
        name: its name.
        tls: its files for TLS; None: it has none.
    """

    name: str
    tls: TlsFiles | None = None

    @property
    def key_file(self) -> str | None:
        """The private key, with which it also signs; None: it signs nothing."""
        return None if self.tls is None else self.tls.key_file


class _About(msgspec.Struct, frozen=True):
    fleet: Name


def names_of(devices: int, first: int = 1) -> list[str]:
    """Return the names of a swarm's devices, ``swarm-00001`` and so on from the number ``first``."""
    return [f"swarm-{index:05}" for index in range(first, first + devices)]


def make_members(state_dir: Path, folder: Path, names: Sequence[str]) -> list[Member]:
    """Make a key and a certificate for each device, and enter the certificates in the ledger, as joining does.

    Devices whose files are in the folder already keep them.

    Args:
        state_dir: the server's state directory, after ``covey fleet init``.
        folder: where to; it and the keys are readable by their owner only.
        names: the devices.

    Raises:
        ConfigError: the fleet has no authority, or the folder is another fleet's.
        StorageError: a file or the ledger cannot be written.
    """
    trust = open_trust(state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(error, folder) from error
    if (folder / _ABOUT).exists() and fleet_of(folder) != trust.fleet:
        raise ConfigError(f"{folder} has devices of fleet {fleet_of(folder)}", "take another folder for --members")
    write_atomically(folder / AUTHORITY, certificate_pem(trust.authority.certificate).encode())
    write_atomically(folder / SIGNING, certificate_pem(trust.signing).encode())
    missing = [name for name in names if not Path(_tls(folder, name).cert_file or "").exists()]
    made = {name: _make(trust, folder, name) for name in missing}
    with contextlib.closing(Ledger(state_dir / LEDGER_FILE)) as ledger, ledger.transaction():
        for record in made.values():  # at once: a server that runs meanwhile has the same ledger
            ledger.certificate_issued(record)
    for name, record in made.items():  # only now: a device whose certificate is in the folder is a member
        write_atomically(Path(_tls(folder, name).cert_file or ""), record.certificate.encode())
    write_atomically(folder / _ABOUT, msgspec.json.encode(_About(trust.fleet)))
    return [Member(name, _tls(folder, name)) for name in names]


def _make(trust: Trust, folder: Path, name: str) -> CertificateRecord:
    """Write a new key, and return the record of its certificate."""
    key, now = new_key(), dt.datetime.now(dt.timezone.utc)
    secret = Path(_tls(folder, name).key_file or "")
    try:
        secret.touch(mode=0o600)
        secret.write_bytes(key_pem(key))
    except OSError as error:
        raise storage_error(error, secret) from error
    made = trust.authority.device(name, key.public_key(), now)
    ends_s = int(made.not_valid_after_utc.timestamp())
    hashed = key_sha256(key.public_key())
    return CertificateRecord(serial_of(made), trust.fleet, name, hashed, certificate_pem(made), ends_s)


def _tls(folder: Path, name: str) -> TlsFiles:
    return TlsFiles(str(folder / AUTHORITY), str(folder / f"{name}.pem"), str(folder / f"{name}-key.pem"))


def fleet_of(folder: Path) -> str:
    """Return the name of the fleet that the devices in a folder belong to.

    Raises:
        ConfigError: it is no folder of make_members.
    """
    with wall(lambda cause: ConfigError(f"{folder} has no devices of a swarm ({cause})", _MAKE)):
        return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About).fleet


def read_members(folder: Path, names: Sequence[str]) -> list[Member]:
    """Return devices that make_members has made.

    Raises:
        ConfigError: it is no folder of make_members, or has not all of them.
    """
    fleet_of(folder)
    members = [Member(name, _tls(folder, name)) for name in names]
    missing = [one.name for one in members if one.tls is None or not Path(one.tls.cert_file or "").exists()]
    if missing:
        raise ConfigError(f"{folder} has no certificate of {missing[0]}, and {len(missing)} are missing", _MAKE)
    return members


def server_key_file(folder: Path) -> Path:
    """Return the certificate of the key with which the server signs."""
    return folder / SIGNING
