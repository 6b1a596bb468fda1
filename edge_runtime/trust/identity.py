"""A device's identity: key, certificate and authority, read, checked and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ConfigError, ProtocolError, StorageError, wall
from edge_runtime.files.atomic import write_atomically
from edge_runtime.releases.pins import take_key_list
from edge_runtime.trust.folder import AUTHORITY, CERT, KEY, SIGNING
from edge_runtime.trust.keys import check_signed_by, key_sha256, name_of, p256_of, read_certificate, read_key
from edge_runtime.trust.messages import EdgeFields, JoinAnswer

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

    from edge_runtime.trust.keys import PrivateKey, PublicKey

_ABOUT = "identity.json"
_AGAIN = "join again with a new token: covey fleet token NAME"


class About(msgspec.Struct, frozen=True):
    """What belongs to an identity beside its certificates.

    Attributes:
        token_id: the token that it was joined with, in hexadecimal digits.
        join_url: where the device has joined, and renews its certificate.
        edge: fields of edge.toml.
    """

    token_id: str
    join_url: str
    edge: EdgeFields


@dataclass(frozen=True)
class Identity:
    """A device's identity, read from its folder.

    Attributes:
        folder: where it is.
        about: what it was joined with.
        key: the private key.
        certificate: the device's certificate.
        authority: the fleet's authority.
    """

    folder: Path
    about: About
    key: PrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate


def about_of(folder: Path) -> About | None:
    """Return what a finished identity was joined with; None: there is none, or it is not finished.

    Raises:
        StorageError: the file is damaged.
    """
    path = folder / _ABOUT
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check its owner and permissions") from error
    with wall(lambda cause: StorageError(f"{path} is damaged: {cause}", _AGAIN)):
        return msgspec.json.decode(data, type=About)


def read_identity(folder: Path) -> Identity:
    """Read a device's identity.

    Raises:
        ConfigError: the device has not joined, or its key is none.
        StorageError: a file is missing or damaged.
        ProtocolError: a certificate is none.
    """
    about = about_of(folder)
    if about is None:
        raise ConfigError(f"there is no identity in {folder}", "covey-edge join with a token: covey fleet token NAME")
    try:
        certificate, authority = (folder / CERT).read_bytes(), (folder / AUTHORITY).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read the certificates in {folder}: {error.strerror}", _AGAIN) from error
    key = read_key(folder / KEY)
    return Identity(
        folder,
        about,
        key,
        read_certificate(certificate, str(folder / CERT)),
        read_certificate(authority, str(folder / AUTHORITY)),
    )


def checked_certificate(answer: JoinAnswer, authority: x509.Certificate, key: PublicKey) -> x509.Certificate:
    """Return the certificate of an answer, which must be this key's and of this authority.

    Raises:
        ProtocolError: it is not, or the answer lacks something.
    """
    if answer.edge is None:
        raise ProtocolError("the server's answer lacks the fields of edge.toml", "use the same version on both sides")
    certificate = read_certificate(answer.certificate, "the certificate from the server")
    check_signed_by(certificate, authority, "the certificate from the server")
    if key_sha256(p256_of(certificate, "the certificate from the server")) != key_sha256(key):
        raise ProtocolError("the certificate from the server is for another key", _AGAIN)
    if name_of(certificate) != answer.edge.name:
        raise ProtocolError(
            f"the certificate from the server is for {name_of(certificate)!r}, not for {answer.edge.name}", _AGAIN
        )
    signing = read_certificate(answer.signing, "the certificate of the server's signing key")
    check_signed_by(signing, authority, "the certificate of the server's signing key")
    return certificate


def write_certificates(folder: Path, answer: JoinAnswer, authority_pem: str, about: About) -> None:
    """Write what an answer brought; ``identity.json`` comes last, and makes it a finished identity.

    Raises:
        ReleaseError: the list of release keys is damaged, or another fleet's.
        StorageError: a file cannot be written.
    """
    write_atomically(folder / AUTHORITY, authority_pem.encode())
    write_atomically(folder / SIGNING, answer.signing.encode())
    write_atomically(folder / CERT, answer.certificate.encode())
    take_release_keys(folder, answer, about.edge.fleet)
    write_atomically(folder / _ABOUT, msgspec.json.encode(about))


def take_release_keys(folder: Path, answer: JoinAnswer, fleet: str) -> None:
    """Pin the release keys of an answer, which came over a connection that the fleet's authority vouches for.

    Raises:
        ReleaseError: the list is damaged, or another fleet's.
        StorageError: it cannot be written.
    """
    if answer.release_keys:
        take_key_list(folder, fleet, answer.release_keys)
