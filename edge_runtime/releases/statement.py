"""What a release says, and how it is signed and encoded: each statement has one encoding only.

Nothing here checks a signature; see check.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated, Literal, TypeVar

import msgspec

from edge_runtime.errors import BundleError, wall
from edge_runtime.values import Name, Sha256, Strict

Kind = Literal["bundle", "adapter", "wheel"]
"""What is released: a bundle (named by its manifest's hash), an adapter, or Covey's own wheel."""
Reason = Literal[
    "unsigned", "malformed", "foreign", "altered", "other-fleet", "other-kind", "other-content", "downgraded"
]
PINS_FILE = "release-keys.signed"
"""The pinned keys, in a device's trust folder: a signed KeyList."""
MOST_BYTES = 4096
"""Bytes of a signed statement."""
MOST_KEYS = 4
KEY_ID_BYTES, KEY_BYTES, SIGNATURE_BYTES = 8, 32, 64
RELEASE_TAG, KEYS_TAG = b"covey-release-v1", b"covey-release-keys-v1"
_REFUSED = "have the operator look at the server: covey job show NAME, and trust/ of its state directory"
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Serial = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
T = TypeVar("T", bound="Release | KeyList")


class ReleaseError(BundleError):
    """A release is not to be loaded.

    Args:
        reason: why, in one word, for counters and logs.
        what: see CoveyError.
        hint: see CoveyError.
    """

    def __init__(self, reason: Reason, what: str, hint: str = _REFUSED) -> None:
        super().__init__(what, hint)
        self.reason: Reason = reason


class Release(Strict, frozen=True, kw_only=True):
    """A statement of the fleet: this may be loaded.

    Attributes:
        v: version of the statement.
        kind: what is released.
        fleet: the fleet's name.
        name: what has versions: for a bundle its model's name. Serials of one kind and name are compared.
        sha256: of the bundle's manifest.json, or of the file.
        serial: ascends with each new content of this kind and name.
        keys_serial: serial of the list of release keys that was in force; see KeyList.
        made_at_s: the server's clock, in seconds since 1970, for people: nothing is decided by it.
    """

    v: Literal[1] = 1
    kind: Kind
    fleet: Name
    name: _Text
    sha256: Sha256
    serial: _Serial
    keys_serial: _Serial
    made_at_s: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class KeyList(Strict, frozen=True, kw_only=True):
    """The fleet's release keys: the current one first, then those that are being retired.

    Attributes:
        v: version of the statement.
        fleet: the fleet's name.
        serial: ascends with each change of the keys.
        keys: Ed25519 public keys, 32 bytes each.
    """

    v: Literal[1] = 1
    fleet: Name
    serial: _Serial
    keys: Annotated[tuple[_Key, ...], msgspec.Meta(min_length=1, max_length=MOST_KEYS)]


class Signature(Strict, frozen=True):
    """One key's signature: the first 8 bytes of the key's SHA-256, and Ed25519 over signed_bytes."""

    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    value: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Signed(Strict, frozen=True):
    """A statement with the signatures of one or more keys: of two, while one follows the other."""

    statement: bytes
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MOST_KEYS)]


def key_id(key: bytes) -> bytes:
    """Return the name of a public key."""
    return hashlib.sha256(key).digest()[:KEY_ID_BYTES]


def signed_bytes(tag: bytes, statement: bytes) -> bytes:
    """Return what a signature is over: a tag of this use and the statement, each with its length before it."""
    return b"".join(struct.pack(">I", len(part)) + part for part in (tag, statement))


def encode(value: Release | KeyList | Signed) -> bytes:
    """Return the only encoding of a statement, or of one with its signatures."""
    return msgspec.msgpack.encode(value)


def decode_signed(data: bytes, what: str) -> Signed:
    """Read a statement with its signatures, which are not checked.

    Args:
        data: what came.
        what: what it is, for the error.

    Raises:
        ReleaseError: ``malformed``.
    """
    if len(data) > MOST_BYTES:
        raise ReleaseError("malformed", f"{what} is larger than {MOST_BYTES} bytes")
    with wall(lambda cause: ReleaseError("malformed", f"{what} cannot be read: {cause}")):
        signed = msgspec.msgpack.decode(data, type=Signed)
        is_canonical = encode(signed) == data
    if not is_canonical or len({one.key_id for one in signed.signatures}) < len(signed.signatures):
        raise ReleaseError("malformed", f"{what} is not in its canonical encoding")
    return signed


def decode_statement(data: bytes, kind: type[T], what: str) -> T:
    """Read a statement; see decode_signed."""
    hint = "use the same version of Covey on server and device"
    with wall(lambda cause: ReleaseError("malformed", f"{what} is not valid: {cause}", hint)):
        found = msgspec.msgpack.decode(data, type=kind)
        is_canonical = encode(found) == data
    if not is_canonical:
        raise ReleaseError("malformed", f"{what} is not in its canonical encoding")
    return found
