"""Checks releases and lists of release keys. Loads the library of signatures: only members with pinned keys do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_runtime.errors import wall
from edge_runtime.releases.statement import (
    KEYS_TAG,
    RELEASE_TAG,
    KeyList,
    Kind,
    Release,
    ReleaseError,
    decode_signed,
    decode_statement,
    key_id,
    signed_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.releases.statement import Signed

_KEYS = "the list of release keys"
_ANOTHER_KEY = (
    "if the operator has given the fleet a new release key, covey-edge renew --now fetches it; "
    "if not, somebody else answers in the server's place"
)
_OLDER = (
    "an old version is never taken back by itself; if trust/release-serials.json of the server was lost, restore it, "
    "or set the server's clock right"
)


@dataclass(frozen=True)
class Wanted:
    """What a device is about to load.

    Attributes:
        kind: what it is.
        fleet: the device's fleet.
        sha256: its hash.
    """

    kind: Kind
    fleet: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind} {self.sha256[:12]}"


def check_release(data: bytes, wanted: Wanted, pinned: Sequence[bytes], floor_of: Callable[[str], int]) -> Release:
    """Return a release that may be loaded.

    Args:
        data: a signed statement.
        wanted: what is to be loaded.
        pinned: the release keys that this device believes.
        floor_of: returns the highest serial that was taken of a name of this kind; 0: none.

    Raises:
        ReleaseError: it may not; its ``reason`` says why.
    """
    what = f"the release of {wanted}"
    signed = decode_signed(data, what)
    _check_signatures(signed, RELEASE_TAG, pinned, what)
    release = decode_statement(signed.statement, Release, what)
    if release.fleet != wanted.fleet:
        raise ReleaseError("other-fleet", f"{what} is signed for fleet {release.fleet}, this is {wanted.fleet}")
    if release.kind != wanted.kind:
        raise ReleaseError("other-kind", f"{what} is signed as {release.kind}")
    if release.sha256 != wanted.sha256:
        raise ReleaseError("other-content", f"{what} is signed for {release.sha256[:12]}")
    if release.serial < (floor := floor_of(release.name)):
        raise ReleaseError(
            "downgraded",
            f"{what} ({release.name}) has serial {release.serial}, and {floor} was taken here before: it is older",
            _OLDER,
        )
    return release


def own_key_list(data: bytes, fleet: str) -> KeyList:
    """Read a list of release keys that came from a trusted place; one of its own keys must have signed it.

    Raises:
        ReleaseError: it is damaged, or another fleet's.
    """
    signed = decode_signed(data, _KEYS)
    found = _list_of(signed, fleet)
    _check_signatures(signed, KEYS_TAG, found.keys, _KEYS)
    return found


def next_key_list(data: bytes, pinned: KeyList) -> KeyList | None:
    """Return a list of release keys that follows the pinned one; None: it is the pinned one.

    Args:
        data: a signed list from anywhere; a pinned key must have signed it.
        pinned: the list that this device has.

    Raises:
        ReleaseError: it does not follow.
    """
    signed = decode_signed(data, _KEYS)
    _check_signatures(signed, KEYS_TAG, pinned.keys, _KEYS)
    found = _list_of(signed, pinned.fleet)
    if found == pinned:
        return None
    if found.serial <= pinned.serial:
        raise ReleaseError(
            "downgraded", f"{_KEYS} has serial {found.serial}, and {pinned.serial} was taken here before"
        )
    return found


def tells_of_other_keys(data: bytes, pinned: KeyList) -> bool:
    """Whether a release, which is not checked yet, is signed with a key that is not pinned, or knows a newer list."""
    signed = decode_signed(data, "the release")
    ids = {key_id(key) for key in pinned.keys}
    if any(one.key_id not in ids for one in signed.signatures):
        return True
    return decode_statement(signed.statement, Release, "the release").keys_serial > pinned.serial


def _list_of(signed: Signed, fleet: str) -> KeyList:
    found = decode_statement(signed.statement, KeyList, _KEYS)
    if found.fleet != fleet:
        raise ReleaseError("other-fleet", f"{_KEYS} is of fleet {found.fleet}, this is {fleet}")
    if len(set(found.keys)) < len(found.keys):
        raise ReleaseError("malformed", f"{_KEYS} has one twice")
    return found


def _check_signatures(signed: Signed, tag: bytes, keys: Sequence[bytes], what: str) -> None:
    """Check that a known key has signed, and that no signature of a known key is wrong."""
    known, message = {key_id(key): key for key in keys}, signed_bytes(tag, signed.statement)
    by_known = [one for one in signed.signatures if one.key_id in known]
    if not by_known:
        raise ReleaseError("foreign", f"{what} is signed with a key that is not the fleet's", _ANOTHER_KEY)
    for one in by_known:
        with wall(lambda cause: ReleaseError("malformed", f"a release key cannot be used: {cause}")):
            key = Ed25519PublicKey.from_public_bytes(known[one.key_id])
        try:
            key.verify(one.value, message)
        except InvalidSignature as error:
            raise ReleaseError("altered", f"{what} was altered: its signature does not fit") from error
