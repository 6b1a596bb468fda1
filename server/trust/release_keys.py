"""The fleet's release keys (Ed25519): one that signs, and while it follows another one, that one too.

All private keys are in one file, the current one first: a change of keys is one rename. The signed list that devices
pin is made anew wherever it does not fit the file.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.errors import ConfigError, StorageError, storage_error
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.releases.check import own_key_list
from edge_runtime.releases.statement import (
    KEYS_TAG,
    KeyList,
    ReleaseError,
    Signature,
    Signed,
    decode_signed,
    encode,
    key_id,
    signed_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

RELEASE_KEY = "release-key.pem"
KEY_LIST = "release-keys.signed"
_LOG = logging.getLogger(__name__)
_BLOCK = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\s*", re.DOTALL)
_LOST = "restore it from your backup; without one: remove it, covey serve makes a new one, and devices renew: --now"


@dataclass(frozen=True)
class ReleaseKeys:
    """The fleet's release keys.

    Attributes:
        keys: the private keys: the current one, and then the one that is being retired, if any.
        listed: what devices are told of them.
        key_list: that, signed by all of them.
    """

    keys: tuple[Ed25519PrivateKey, ...]
    listed: KeyList
    key_list: bytes

    def signed(self, tag: bytes, statement: bytes) -> bytes:
        """Return a statement with the signatures of all keys."""
        return _signed(self.keys, tag, statement)


def open_release_keys(folder: Path, fleet: str, now_s: float) -> ReleaseKeys:
    """Read the release keys; they are made where the folder has none, which is older than they are.

    Args:
        folder: ``trust/`` of the state directory.
        fleet: the fleet's name.
        now_s: the time, in seconds since 1970.

    Raises:
        StorageError: the file is damaged, or others can read it, or it cannot be written.
    """
    path = folder / RELEASE_KEY
    if not path.exists():
        make_release_key(folder)
        _LOG.warning("the fleet had no release key; %s was made: add it to your backup", path)
    return _with_list(folder, fleet, _read(path), now_s)


def make_release_key(folder: Path) -> None:
    """Write a first release key.

    Raises:
        StorageError: it cannot be written.
    """
    _write(folder, (Ed25519PrivateKey.generate(),))


def rotate(folder: Path, fleet: str, now_s: float) -> ReleaseKeys:
    """Make a new release key; releases are signed with it and with the old one until finish_rotation.

    Raises:
        ConfigError: the last rotation is not finished.
        StorageError: see open_release_keys.
    """
    old = open_release_keys(folder, fleet, now_s)
    if len(old.keys) > 1:
        raise ConfigError(
            "the last rotation of the release key is not finished",
            "covey fleet rotate-release-key --finish, when the devices have heard of it",
        )
    keys = (Ed25519PrivateKey.generate(), *old.keys)
    _write(folder, keys)
    return _with_list(folder, fleet, keys, now_s)


def finish_rotation(folder: Path, fleet: str, now_s: float) -> ReleaseKeys:
    """Retire the old release key: devices that hear of it refuse it from then on.

    Raises:
        ConfigError: no rotation is under way.
        StorageError: see open_release_keys.
    """
    old = open_release_keys(folder, fleet, now_s)
    if len(old.keys) == 1:
        raise ConfigError("no rotation of the release key is under way", "begin one: covey fleet rotate-release-key")
    _write(folder, old.keys[:1])
    return _with_list(folder, fleet, old.keys[:1], now_s)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return a key's public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def _with_list(folder: Path, fleet: str, keys: tuple[Ed25519PrivateKey, ...], now_s: float) -> ReleaseKeys:
    """Return keys with their signed list: the one on disk where it fits, else a new one with a higher serial."""
    path, publics, last = folder / KEY_LIST, tuple(public_bytes(key) for key in keys), 0
    if path.exists():
        try:
            data = path.read_bytes()
            listed = own_key_list(data, fleet)
            last = listed.serial
            signers = {one.key_id for one in decode_signed(data, KEY_LIST).signatures}
            if listed.keys == publics and signers == {key_id(key) for key in publics}:
                return ReleaseKeys(keys, listed, data)
        except ReleaseError as error:
            set_aside(path, f"{path} is damaged: {error.what}")
        except OSError as error:
            raise storage_error(error, path) from error
    listed = KeyList(fleet=fleet, serial=max(last + 1, int(now_s), 1), keys=publics)
    data = _signed(keys, KEYS_TAG, encode(listed))
    write_atomically(path, data)
    return ReleaseKeys(keys, listed, data)


def _signed(keys: tuple[Ed25519PrivateKey, ...], tag: bytes, statement: bytes) -> bytes:
    message = signed_bytes(tag, statement)
    return encode(Signed(statement, tuple(Signature(key_id(public_bytes(key)), key.sign(message)) for key in keys)))


def _write(folder: Path, keys: tuple[Ed25519PrivateKey, ...]) -> None:
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_atomically(folder / RELEASE_KEY, b"".join(key.private_bytes(*kinds) for key in keys), is_private=True)


def _read(path: Path) -> tuple[Ed25519PrivateKey, ...]:
    try:
        data, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise storage_error(error, path) from error
    if mode & 0o077:
        raise StorageError(
            f"{path} is a private key that other users can read (mode {mode:04o})",
            f"chmod 600 {path}; if somebody may have read it: covey fleet rotate-release-key",
        )
    keys: list[Ed25519PrivateKey] = []
    blocks = _BLOCK.findall(data)
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):  # its text may quote the file; see below
        for block in blocks:
            key = serialization.load_pem_private_key(block, password=None)
            keys += [key] if isinstance(key, Ed25519PrivateKey) else []
    if not 1 <= len(keys) <= 2 or len(keys) != len(blocks) or b"".join(blocks) != data:
        raise StorageError(f"{path} is damaged: it holds no Ed25519 keys in PEM", _LOST)
    return tuple(keys)
