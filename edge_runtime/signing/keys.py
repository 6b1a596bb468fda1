"""P-256 keys: read from PEM files, named by their hash, and kept in a book of who may sign with which."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

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
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


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


def read_public_key(path: Path) -> PublicKey:
    """Read a public key in PEM, or the public key of the first certificate in a PEM file.

    Whether the certificate is valid is not checked: its place in the configuration is what makes it trusted.

    Raises:
        ConfigError: no such file, or it holds no public P-256 key.
    """

    def load(data: bytes) -> object:
        if _CERTIFICATE in data:
            return x509.load_pem_x509_certificate(data).public_key()
        return load_pem_public_key(data)

    key = _read(path, load, "a public key or a certificate in PEM")
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path} holds no P-256 key", "signatures use P-256: give a certificate or public key of one")
    return key


def _read(path: Path, load: Callable[[bytes], object], wanted: str) -> object:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror or error}", "check the path") from error
    except Exception as error:
        raise ConfigError(f"{path} is not {wanted}: {cause_of(error)}", "check which file it is") from error


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
