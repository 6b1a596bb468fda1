"""``trust/`` of the state directory: the fleet's keys and certificates, each file readable by its owner only."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from edge_runtime.errors import ConfigError, StorageError, storage_error, wall
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.network.http_address import check_http_url, https_url
from edge_runtime.trust.keys import (
    certificate_pem,
    check_signed_by,
    key_pem,
    key_sha256,
    new_key,
    own_key,
    p256_of,
    read_certificate,
    read_key,
)
from edge_runtime.trust.validity import is_renewal_due
from edge_runtime.values import NAME_PATTERN, Name
from server.trust.authority import Authority, hosts_of, make_authority
from server.trust.release_keys import make_release_key

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography import x509

    from edge_runtime.trust.keys import PrivateKey

FOLDER = "trust"
AUTHORITY_CERT, AUTHORITY_KEY = "ca.pem", "ca-key.pem"
SERVER_CERT, SERVER_KEY = "server.pem", "server-key.pem"
SIGNING_CERT, SIGNING_KEY = "signing.pem", "signing-key.pem"
_ABOUT = "fleet.json"
_LOST = "restore the folder from your backup: without its keys every device has to join again"


class _About(msgspec.Struct, frozen=True):
    fleet: Name
    server_url: str


@dataclass(frozen=True)
class Trust:
    """A fleet's keys and certificates.

    Attributes:
        folder: where they are.
        authority: signs certificates.
        signing_key: signs what the server sends.
        signing: the signing key's certificate.
        server: the server's certificate.
        server_url: where devices join, for their tokens.
    """

    folder: Path
    authority: Authority
    signing_key: PrivateKey
    signing: x509.Certificate
    server: x509.Certificate
    server_url: str

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self.authority.fleet

    @property
    def hosts(self) -> list[str]:
        """Host names and addresses that the server's certificate is for."""
        return hosts_of(self.server)


def has_trust(state_dir: Path) -> bool:
    """Whether ``covey fleet init`` was run for a state directory."""
    return (state_dir / FOLDER).is_dir()


def join_url(trust: Trust, given: str | None) -> str:
    """Return where devices join; ``given``: where else than at the fleet's first host, None: there.

    Raises:
        ConfigError: it is no address, or the server's certificate is not for its host.
    """
    url = check_http_url(given) if given is not None else trust.server_url
    host = urlsplit(url).hostname or ""
    if host not in [name.lower() for name in trust.hosts]:
        raise ConfigError(
            f"the server's certificate is not for {host}, only for {', '.join(trust.hosts)}",
            f"covey fleet host {host}, and restart covey serve",
        )
    return url


def init_trust(state_dir: Path, fleet: str, hosts: Sequence[str], join_port: int, now: dt.datetime) -> Trust:
    """Make a fleet's authority, the server's certificate, the signing key and the release key.

    The folder appears whole or not at all: a power cut leaves ``trust.partial``, which the next attempt replaces.

    Args:
        state_dir: the server's state directory.
        fleet: the fleet's name.
        hosts: names and addresses of the server; devices join at the first one.
        join_port: port where devices join.
        now: the time.

    Raises:
        ConfigError: there is one already, or a host can be none.
        StorageError: the folder cannot be written.
    """
    folder = state_dir / FOLDER
    if os.path.lexists(folder):
        raise ConfigError(
            f"{folder} is there already: it holds the keys that every device of its fleet trusts",
            "use another --state-dir for another fleet; whoever moves the folder away must let all devices join again",
        )
    if not re.match(NAME_PATTERN, fleet):
        raise ConfigError(
            f"{fleet!r} cannot be the name of a fleet", "use up to 63 letters, digits, dots, dashes and underscores"
        )
    about = _About(fleet, https_url(hosts[0], join_port))
    partial = state_dir / f"{FOLDER}.partial"
    authority = make_authority(fleet, new_key(), now)
    signing_key = new_key()
    signing = authority.signing(signing_key.public_key(), now)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        _write(partial / AUTHORITY_KEY, key_pem(authority.key))
        _write(partial / AUTHORITY_CERT, certificate_pem(authority.certificate).encode())
        _write(partial / SIGNING_KEY, key_pem(signing_key))
        _write(partial / SIGNING_CERT, certificate_pem(signing).encode())
        make_release_key(partial)
        _issue_server(partial, authority, hosts, now)
        _write(partial / _ABOUT, msgspec.json.encode(about))
        partial.rename(folder)
        sync_directory(state_dir)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        if isinstance(error, OSError):
            raise storage_error(error, folder) from error
        raise
    return open_trust(state_dir)


def open_trust(state_dir: Path) -> Trust:
    """Read a fleet's keys and certificates, and check that they belong together and that nobody else can read the keys.

    Raises:
        ConfigError: ``covey fleet init`` has not been run, or a key is none.
        StorageError: a file is missing or damaged, or others may read a key.
        ProtocolError: a certificate is none, or is not the authority's.
    """
    folder = state_dir / FOLDER
    if not folder.is_dir():
        raise ConfigError(f"there is no fleet authority in {folder}", "make it: covey fleet init")
    for name in (AUTHORITY_KEY, SIGNING_KEY, SERVER_KEY):
        _check_private(folder / name)
    fault = f"{folder / _ABOUT} is damaged"
    with wall(lambda cause: StorageError(f"{fault}: {cause}", _LOST)):
        about = msgspec.json.decode(_read(folder / _ABOUT), type=_About)
    certificate = _certificate(folder / AUTHORITY_CERT)
    authority = Authority(about.fleet, certificate, _key_of(certificate, folder / AUTHORITY_KEY))
    signing, server = _certificate(folder / SIGNING_CERT), _certificate(folder / SERVER_CERT)
    for found, name in ((signing, SIGNING_CERT), (server, SERVER_CERT)):
        check_signed_by(found, certificate, str(folder / name))
    _key_of(server, folder / SERVER_KEY)
    return Trust(folder, authority, _key_of(signing, folder / SIGNING_KEY), signing, server, about.server_url)


def with_server_certificate(trust: Trust, now: dt.datetime, hosts: Sequence[str] = ()) -> Trust:
    """Return the trust with a certificate of the server that is valid for a while, for more hosts if there are some.

    It is made anew where less than a third of its time is left, or where ``hosts`` has one that it is not for.

    Raises:
        ConfigError: a host can be none, or the authority has expired.
        StorageError: it cannot be written.
    """
    missing = [host for host in hosts if host not in trust.hosts]
    if not missing and not is_renewal_due(trust.server, now.timestamp()):
        return trust
    _issue_server(trust.folder, trust.authority, [*trust.hosts, *missing], now)
    return open_trust(trust.folder.parent)


def _issue_server(folder: Path, authority: Authority, hosts: Sequence[str], now: dt.datetime) -> None:
    """Write a certificate for the server's key, which is made where it is missing."""
    key = own_key(folder / SERVER_KEY)
    certificate = authority.server(hosts, key.public_key(), now)
    _write(folder / SERVER_CERT, certificate_pem(certificate).encode())


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, data, is_private=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}", _LOST) from error


def _check_private(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}", _LOST) from error
    if mode & 0o077:
        raise StorageError(
            f"{path} is a private key that other users can read (mode {mode:04o})",
            f"chmod 600 {path}; if somebody may have read it, make the fleet anew: covey fleet init",
        )


def _certificate(path: Path) -> x509.Certificate:
    return read_certificate(_read(path), str(path))


def _key_of(certificate: x509.Certificate, path: Path) -> PrivateKey:
    """Return the private key in a file, which must be the certificate's."""
    key = read_key(path)
    if key_sha256(key.public_key()) != key_sha256(p256_of(certificate, str(path))):
        raise StorageError(f"the key {path} does not belong to its certificate", _LOST)
    return key
