"""P-256 keys: read from PEM files, named by their hash, and kept in a book of who may sign with which."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from typing import TYPE_CHECKING, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edge_runtime.errors import ConfigError, cause_of
from edge_runtime.protocol.signed import KEY_ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_LOG = logging.getLogger(__name__)
_BLOCK = re.compile(rb"-----BEGIN (CERTIFICATE|PUBLIC KEY)-----.*?-----END \1-----", re.DOTALL)
_MOST_KEY_BYTES = 1 << 20


def key_id(key: PublicKey) -> bytes:
    """Return the name of a key: the first 8 bytes of the SHA-256 of its SubjectPublicKeyInfo in DER."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).digest()[:KEY_ID_BYTES]


def read_private_key(path: Path) -> PrivateKey:
    """Read a private key in PEM, without a password.

    Raises:
        ConfigError: no such file, others can read it, or it holds no private P-256 key.
    """
    key = _read(
        path, lambda data: load_pem_private_key(data, password=None), "a private key in PEM, without a password"
    )
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path} holds no P-256 key", "openssl ecparam -name prime256v1 -genkey -noout makes one")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds a private key, and others than its owner can use it", f"chmod 600 {path}")
    return key


def read_public_keys(path: Path) -> list[PublicKey]:
    """Read all public keys of a PEM file: public keys, and those of certificates that are no authorities.

    Whether a certificate is valid is not checked: its place in the configuration is what makes it trusted.

    Raises:
        ConfigError: no such file, it holds no such key, or one that is none of P-256.
    """

    def load(data: bytes) -> object:
        if len(data) > _MOST_KEY_BYTES:
            raise ValueError("it is too large")
        return [key for block in _BLOCK.finditer(data) if (key := _public_key(block)) is not None]

    keys = _read(path, load, "a file of public keys or certificates in PEM")
    if not isinstance(keys, list) or not keys:
        raise ConfigError(
            f"{path} holds no public key and no member's certificate", "give PEM, not DER, and no authority"
        )
    for key in keys:
        if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(
                f"{path} holds a key that is none of P-256", "signatures use P-256, as its certificate must"
            )
    return keys


def _public_key(block: re.Match[bytes]) -> object:
    """Return the key of a PEM block; None: it is an authority's certificate."""
    if block.group(1) == b"PUBLIC KEY":
        return load_pem_public_key(block.group())
    certificate = x509.load_pem_x509_certificate(block.group())
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    return None if is_authority else certificate.public_key()


def _read(path: Path, load: Callable[[bytes], object], wanted: str) -> object:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror or error}", "check the path") from error
    except Exception as error:
        raise ConfigError(f"{path} is not {wanted}: {cause_of(error)}", "check which file it is") from error


class Keys(Protocol):
    """Which keys each speaker may sign with."""

    def of(self, speaker: str) -> Mapping[bytes, PublicKey]:
        """Return a speaker's keys by their ids; the mapping never changes after it was returned."""


class KeyBook:
    """Which keys each speaker may sign with. Safe to use from several threads.

    A speaker may have several: while a certificate is renewed, the old and the new key are both valid. A removed key
    is refused from the next message on.
    """

    def __init__(self) -> None:
        self._keys: dict[str, dict[bytes, PublicKey]] = {}
        self._lock = threading.Lock()

    def add(self, speaker: str, key: PublicKey) -> None:
        """Let a speaker (a device's name, or signed.SERVER) sign with a key."""
        with self._lock:
            self._keys[speaker] = {**self._keys.get(speaker, {}), key_id(key): key}

    def replace(self, speaker: str, *keys: PublicKey) -> None:
        """Let a speaker sign with these keys, and with no other; without keys, with none."""
        with self._lock:
            self._keys.pop(speaker, None)
            if keys:
                self._keys[speaker] = {key_id(key): key for key in keys}

    def of(self, speaker: str) -> Mapping[bytes, PublicKey]:
        """Return a speaker's keys by their ids; they never change after they were returned."""
        with self._lock:
            return self._keys.get(speaker, {})


class KeyFolder:
    """A folder with a file ``NAME.pem`` for each device: its public keys or certificates; see read_public_keys.

    A file that was changed or removed counts from the next message on, so that a device whose file is gone is refused
    at once, and one that has just joined is heard. Used by one thread.

    Args:
        folder: the folder.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(
                f"there is no folder {folder} with the devices' keys", "make it, with a NAME.pem per device"
            )
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, ...], dict[bytes, PublicKey]]] = {}

    def of(self, speaker: str) -> Mapping[bytes, PublicKey]:
        """See Keys; a file that cannot be used holds none, and the log says so once."""
        path = self._folder / f"{speaker}.pem"
        try:
            status = path.stat()
        except OSError:
            self._known.pop(speaker, None)
            return {}
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(speaker)
        if known is None or known[0] != version:
            keys: dict[bytes, PublicKey] = {}
            try:
                keys = {key_id(key): key for key in read_public_keys(path)}
            except ConfigError as error:
                _LOG.error("%s is not believed: %s", speaker, error)
            known = self._known[speaker] = (version, keys)
        return known[1]
