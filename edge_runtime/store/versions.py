"""Which version of the model this device uses: one pointer, replaced by a rename, and the version before it.

::

    state_dir/
      versions.json               the version in use, the one before it, and what became of the last releases
      released/<sha256>.bin       the adapters of these two versions

A device to which nothing was rolled out uses what training has left (the journal): there both versions are null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.errors import ConfigError, StorageError, storage_error
from edge_runtime.files.aside import remove, set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.document import read_document
from edge_runtime.store.store import current_adapter
from edge_runtime.values import Sha256, Strict

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.store.store import Store

VERSIONS_FILE = "versions.json"


class Version(Strict, frozen=True):
    """A version of the model.

    Attributes:
        bundle_sha256: its bundle.
        adapter_sha256: its adapter; None: the bundle's own.
        rollout: number of the rollout that it came with.
    """

    bundle_sha256: Sha256
    adapter_sha256: Sha256 | None
    rollout: int


class Outcome(Strict, frozen=True):
    """What became of a release, for the server that asks again; see Released and Release."""

    rollout: int
    kind: Literal["bundle", "adapter", "wheel"]
    step: Literal["switch", "back"]
    sha256: Sha256
    outcome: Literal["switched", "failed", "rolled-back"]
    code: int = 0
    reason: str = ""


class Versions(Strict, frozen=True):
    """The versions of a device.

    Attributes:
        v: version of this file.
        current: the version in use; None: what training has left.
        previous: the version before it; None: what training has left.
        outcomes: what became of the last release of each slot, ``model`` and ``covey``.
    """

    v: Literal[1] = 1
    current: Version | None = None
    previous: Version | None = None
    outcomes: dict[str, Outcome] = msgspec.field(default_factory=dict)


class VersionsDamagedError(StorageError):
    """The file of the versions says nothing."""


def read_versions(store: Store) -> Versions:
    """Return a device's versions; both null where there is no file.

    Raises:
        VersionsDamagedError: it is damaged.
        StorageError: it cannot be read.
    """
    path = store.root / VERSIONS_FILE

    def damaged(cause: str) -> StorageError:
        return VersionsDamagedError(
            f"{path} is damaged: {cause}",
            "start covey-edge run: it sets the file aside, and what training has left is used until the next release",
        )

    found = read_document(path, msgspec.json.Decoder(Versions).decode, damaged)
    return Versions() if found is None else found


def mended_versions(store: Store) -> Versions:
    """Return a device's versions; a damaged file is set aside, and said in the log.

    Raises:
        StorageError: it cannot be read, or not be set aside.
    """
    try:
        return read_versions(store)
    except VersionsDamagedError as error:
        set_aside(store.root / VERSIONS_FILE, error.what)
        return Versions()


def write_versions(store: Store, versions: Versions) -> None:
    """Replace the pointer; afterwards adapters that neither version has are removed.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    write_atomically(store.root / VERSIONS_FILE, msgspec.json.encode(versions))
    kept = {v.adapter_sha256 for v in (versions.current, versions.previous) if v is not None}
    folder = store.root / "released"
    try:
        for path in folder.glob("*"):
            if path.stem not in kept:
                remove(path)
    except OSError as error:
        raise storage_error(error, folder) from error


def switched(versions: Versions, new: Version) -> Versions:
    """Return the versions after a switch; the one that was in use is the previous one."""
    if versions.current == new:
        return versions
    return msgspec.structs.replace(versions, current=new, previous=versions.current)


def gone_back(versions: Versions) -> Versions:
    """Return the versions after a step back. A second step goes forward again: only two versions are kept.

    Raises:
        ConfigError: no version was ever rolled out to this device.
    """
    if versions.current is None and versions.previous is None:
        raise ConfigError("no version was rolled out to this device", "there is nothing to go back from")
    return msgspec.structs.replace(versions, current=versions.previous, previous=versions.current)


def released_file(store: Store, sha256: str) -> Path:
    """Return the path of the adapter of a version, which may not exist."""
    return store.root / "released" / f"{sha256}.bin"


def in_use(store: Store) -> tuple[Path, Path | None, bool] | None:
    """Return bundle folder and adapter file (None: the bundle's own) in use, and whether training left them.

    None: no version was rolled out, and the device has taken part in no round.

    Raises:
        StorageError: the versions or the journal cannot be read.
    """
    current = read_versions(store).current
    if current is None:
        trained = current_adapter(store)
        return None if trained is None else (*trained, True)
    adapter = None if current.adapter_sha256 is None else released_file(store, current.adapter_sha256)
    return store.bundles / current.bundle_sha256, adapter, False
