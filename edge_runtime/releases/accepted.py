"""The highest serial that a device has taken of each kind and name: what keeps old releases from coming back.

Two copies are kept, written one after the other: a power cut between them loses nothing, and one damaged copy is set
aside and made anew from the other. Where no whole copy is left, releases are refused until a person decides: a damaged
file must not be a way to an old version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.errors import StorageError, storage_error, wall
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.values import Sha256, Strict

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.releases.statement import Kind, Release

ACCEPTED_FILES = ("releases-accepted.json", "releases-accepted.copy.json")


class _Accepted(Strict, frozen=True):
    v: Literal[1]
    serials: dict[str, Annotated[int, msgspec.Meta(ge=1)]]
    check: Sha256


class _DamagedError(StorageError):
    """A copy is damaged."""


def accepted_serials(folder: Path) -> dict[str, int]:
    """Return the highest serials by ``FLEET KIND NAME``, as far as either copy knows.

    Raises:
        StorageError: no whole copy is left, or one cannot be read or set aside.
    """
    copies: list[dict[str, int]] = []
    damaged: list[tuple[Path, str]] = []
    for name in ACCEPTED_FILES:
        try:
            found = _read(folder / name)
        except _DamagedError as error:
            damaged.append((folder / name, error.what))
        else:
            copies += [] if found is None else [found]
    if damaged and not copies:
        files = " and ".join(str(folder / name) for name in ACCEPTED_FILES)
        raise StorageError(
            f"{damaged[0][1]}; which releases this device has taken is not known, so none is loaded",
            f"once you are sure of the server, remove {files}: the next release then counts as the first",
        )
    for path, why in damaged:
        set_aside(path, why)
    merged: dict[str, int] = {}
    for copy in copies:
        for key, serial in copy.items():
            merged[key] = max(serial, merged.get(key, 0))
    if copies and (len(copies) < len(ACCEPTED_FILES) or any(copy != merged for copy in copies)):
        _write(folder, merged)
    return merged


def floor(folder: Path, fleet: str, kind: Kind, name: str) -> int:
    """Return the highest serial that was taken of a fleet's kind and name; 0: none. Raises as accepted_serials."""
    return accepted_serials(folder).get(f"{fleet} {kind} {name}", 0)


def accept(folder: Path, release: Release) -> None:
    """Remember, before it is used, that a release was taken; lower serials are refused from now on.

    Raises:
        StorageError: see accepted_serials; or it cannot be written.
    """
    serials, key = accepted_serials(folder), f"{release.fleet} {release.kind} {release.name}"
    if release.serial > serials.get(key, 0):
        _write(folder, {**serials, key: release.serial})


def _write(folder: Path, serials: dict[str, int]) -> None:
    data = msgspec.json.encode(_Accepted(1, serials, _check(serials)))
    for name in ACCEPTED_FILES:
        write_atomically(folder / name, data)


def _read(path: Path) -> dict[str, int] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_dir():
            raise _DamagedError(f"{path} is a folder") from error
        raise storage_error(error, path) from error
    with wall(lambda cause: _DamagedError(f"{path} is damaged: {cause}")):
        found = msgspec.json.decode(data, type=_Accepted)
        is_whole = _check(found.serials) == found.check
    if not is_whole:
        raise _DamagedError(f"{path} is damaged: its content does not fit its check sum")
    return found.serials


def _check(serials: dict[str, int]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(serials.items()))).hexdigest()
