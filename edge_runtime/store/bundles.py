"""Gets the bundle that a plan names: from disk if it is there and whole, else over HTTP, file by file."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_runtime.bundle.folder import Bundle, check_file, open_bundle, open_named, verify_files
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import decode_manifest
from edge_runtime.engines.golden import check_golden
from edge_runtime.engines.least_versions import check_versions
from edge_runtime.errors import BundleError, StorageError, storage_error
from edge_runtime.files.aside import remove, set_aside
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.releases.require import require_release
from edge_runtime.store.trials import require_trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engines.choose import Engines
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)
_MAX_MANIFEST_BYTES = 1 << 24
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class TrustPlace:
    """A device's trust folder, and the fleet whose releases it takes."""

    folder: Path
    fleet: str


def install_bundle(
    store: Store,
    fetcher: Fetcher,
    sha256: str,
    engines: Engines,
    *,
    contained: bool = False,
    trust: TrustPlace | None = None,
) -> Bundle:
    """Return a checked bundle: from disk if it is there and whole, else fetched and run on its golden vectors.

    Args:
        store: the device's state directory.
        fetcher: fetches the bundle's files.
        sha256: the bundle's name.
        engines: run the golden vectors.
        contained: run them in a child process, also where the bundle is on disk but has not been tried with the
            libraries and the processor of today: see require_trial.
        trust: where the device's pinned release keys are, if it has some. The bundle's release is required before
            anything of the bundle is fetched or opened, also where it is on disk.

    Raises:
        ReleaseError: the bundle is not released to this fleet, or is older than one that was taken: see
            require_release.
        NetworkError, BundleError, StorageError: the bundle could not be obtained; what was on disk before stays.
        ConfigError: a library is not installed, is older than the bundle needs (nothing but the manifest is fetched
            then), or it ended the child.
    """
    path = store.bundles / sha256
    if trust is not None:
        stored = store.bundles / f"{sha256}.release"
        require_release(trust.folder, trust.fleet, "bundle", sha256, fetcher.beside, stored)
    if path.is_dir():
        try:
            bundle = open_named(path, sha256)
            verify_files(bundle)
            check_versions(bundle.manifest, engines.runtime)
        except BundleError as error:
            _LOG.warning("the bundle on disk is damaged (%s); fetching the damaged files again", error.what)
            _reopen(path)
        else:
            if contained:
                require_trial(store.root, bundle, engines)
            return bundle
    elif _is_there(path):
        set_aside(path, f"{path} is not a folder")
    _LOG.info("fetching bundle %s", sha256[:12])

    def check(bundle: Bundle) -> None:
        if contained:
            require_trial(store.root, bundle, engines)
        else:
            check_golden(bundle, engines)

    return fetch_bundle(
        fetcher, sha256, store.bundles, check, before=lambda manifest: check_versions(manifest, engines.runtime)
    )


def _reopen(path: Path) -> None:
    """Turn a damaged bundle into a partly fetched one, whose good files are kept."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        remove(partial)
        path.replace(partial)
    except OSError as error:
        raise storage_error(error, path) from error


def _clear(partial: Path, manifest: Manifest) -> None:
    """Remove from a partly fetched bundle what its manifest does not list, and what is in the way of what it lists."""
    listed = {entry.path for entry in manifest.files}
    kept = listed | {f"{name}.part" for name in listed}  # the fetcher's own name of an unfinished file
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    try:
        if _is_there(partial) and (partial.is_symlink() or not partial.is_dir()):
            remove(partial)
        for path in sorted(partial.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            name, is_folder = path.relative_to(partial).as_posix(), path.is_dir() and not path.is_symlink()
            if path.is_symlink() or name not in (folders if is_folder else kept):
                remove(path)
    except OSError as error:
        raise storage_error(error, partial) from error


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def fetch_bundle(
    fetcher: Fetcher,
    sha256: str,
    bundles: Path,
    check: Callable[[Bundle], None],
    before: Callable[[Manifest], None] = lambda _manifest: None,
) -> Bundle:
    """Fetch a bundle, check it, and make it appear by a rename.

    Args:
        fetcher: fetches from the server.
        sha256: the bundle's name.
        bundles: folder of the bundles; files of an interrupted attempt are kept there.
        check: runs the golden vectors; the bundle appears only if it returns.
        before: called with the manifest before any other file is fetched; nothing is where it raises.

    Raises:
        NetworkError, BundleError, StorageError: no bundle appears; fetched files stay for the next attempt.
    """
    target, partial = bundles / sha256, bundles / f"{sha256}.partial"
    data = fetcher.data(sha256, _MAX_MANIFEST_BYTES)
    manifest = decode_manifest(data)
    before(manifest)
    _clear(partial, manifest)
    missing = {entry.path: entry for entry in manifest.files if not _is_whole(partial / entry.path, entry.size_bytes)}
    _check_space(bundles, sum(entry.size_bytes for entry in missing.values()))
    for entry in manifest.files:
        path = partial / entry.path
        if entry.path in missing:
            fetcher.file(entry.sha256, entry.size_bytes, path)
        else:
            try:
                check_file(path, entry)
            except BundleError:
                path.unlink()
                fetcher.file(entry.sha256, entry.size_bytes, path)
    write_atomically(partial / MANIFEST_FILE, data)
    bundle = open_bundle(partial)
    verify_files(bundle)
    check(bundle)
    try:
        partial.replace(target)
        sync_directory(bundles)
    except OSError as error:
        raise storage_error(error, target) from error
    return open_bundle(target)


def _is_whole(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _check_space(folder: Path, needed_bytes: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed the state directory
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise storage_error(error, folder) from error
    if free < needed_bytes + _SPARE_BYTES:
        raise StorageError(
            f"the bundle needs {needed_bytes / 1e6:.0f} MB more, {folder} has {free / 1e6:.0f} MB free",
            "free some space, or move state_dir to a larger disk",
        )
