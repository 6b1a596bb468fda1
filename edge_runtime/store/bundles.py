"""Gets the bundle that a plan names: from disk if it is there and whole, else over HTTP, file by file."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from edge_runtime.bundle.folder import Bundle, check_file, open_bundle, verify_files
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import decode_manifest, read_manifest
from edge_runtime.engines.golden import check_golden
from edge_runtime.errors import BundleError, StorageError, storage_error
from edge_runtime.files.atomic import sync_directory, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.engines.choose import Engines
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)
_MAX_MANIFEST_BYTES = 1 << 24
_SPARE_BYTES = 16 << 20


def install_bundle(store: Store, fetcher: Fetcher, sha256: str, engines: Engines) -> Bundle:
    """Return a checked bundle: from disk if it is there and whole, else fetched and run on its golden vectors.

    Args:
        store: the device's state directory.
        fetcher: fetches the bundle's files.
        sha256: the bundle's name.
        engines: run the golden vectors.

    Raises:
        NetworkError, BundleError, StorageError: the bundle could not be obtained; what was on disk before stays.
    """
    path = store.bundles / sha256
    if path.is_dir():
        try:
            bundle = open_bundle(path)
            verify_files(bundle)
        except BundleError as error:
            _LOG.warning("the bundle on disk is damaged (%s); fetching the damaged files again", error.what)
            _set_aside(path)
        else:
            return bundle
    _LOG.info("fetching bundle %s", sha256[:12])

    def check(bundle: Bundle) -> None:
        check_golden(bundle, engines)

    return fetch_bundle(fetcher, sha256, store.bundles, check)


def _set_aside(path: Path) -> None:
    """Turn a damaged bundle into a partly fetched one: keep its good files, remove unlisted ones."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        path.replace(partial)
        try:
            listed = {entry.path for entry in read_manifest(partial)[0].files}
        except BundleError:
            listed = set()
        for file in partial.rglob("*"):
            if file.is_file() and file.relative_to(partial).as_posix() not in listed:
                file.unlink()
    except OSError as error:
        raise storage_error(error, path) from error


def fetch_bundle(fetcher: Fetcher, sha256: str, bundles: Path, check: Callable[[Bundle], None]) -> Bundle:
    """Fetch a bundle, check it, and make it appear by a rename.

    Args:
        fetcher: fetches from the server.
        sha256: the bundle's name.
        bundles: folder of the bundles; files of an interrupted attempt are kept there.
        check: runs the golden vectors; the bundle appears only if it returns.

    Raises:
        NetworkError, BundleError, StorageError: no bundle appears; fetched files stay for the next attempt.
    """
    target, partial = bundles / sha256, bundles / f"{sha256}.partial"
    data = fetcher.data(sha256, _MAX_MANIFEST_BYTES)
    manifest = decode_manifest(data)
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
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise StorageError(
            f"the bundle needs {needed_bytes / 1e6:.0f} MB more, {folder} has {free / 1e6:.0f} MB free",
            "free some space, or move state_dir to a larger disk",
        )
