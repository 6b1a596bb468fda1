"""What is rolled out: found, checked and kept in the server's state directory, before a rollout begins."""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.adapter import check_finite, map_adapter
from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.errors import ConfigError, storage_error
from edge_runtime.files.atomic import sync_directory, sync_file
from edge_runtime.files.hashing import file_sha256
from server.errors import RolloutError
from server.job.selector import EVERYONE, parse_selector
from server.storage import queries

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.side_messages import ReleaseKind
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger

WHEEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.whl$")


@dataclass(frozen=True)
class Offer:
    """What is rolled out; see Rollout for its fields."""

    kind: ReleaseKind
    sha256: str
    size_bytes: int
    path: str
    bundle_sha256: str | None = None
    bundle_path: str | None = None


class Offers:
    """Finds what is to be rolled out.

    Args:
        ledger: has the jobs, whose adapters may be named.
        blobs: has their adapters.
        folder: where files are kept for as long as devices may fetch them.
    """

    def __init__(self, ledger: Ledger, blobs: BlobStore, folder: Path) -> None:
        self._ledger, self._blobs, self._folder = ledger, blobs, folder

    def find(self, kind: ReleaseKind, source: str, bundle: str | None) -> Offer:
        """Return a checked offer.

        Args:
            kind: what it is.
            source: an absolute path on this machine; of an adapter, also the name of a job.
            bundle: absolute path of the bundle of an adapter that is given by its path.

        Raises:
            ConfigError, RolloutError: there is no such file or job.
            BundleError: a bundle or an adapter is damaged.
            StorageError: it cannot be kept.
        """
        if kind == "bundle":
            found = _whole_bundle(source)
            size_bytes = (found.path / MANIFEST_FILE).stat().st_size
            return Offer(kind, found.sha256, size_bytes, str(found.path))
        if kind == "wheel":
            return self._wheel(_file(source))
        return self._adapter(source, bundle)

    def _adapter(self, source: str, bundle: str | None) -> Offer:
        job = queries.find_job(self._ledger, source)
        if job is not None:
            if parse_selector(str(job.config.get("devices", EVERYONE))).is_for_swarm:
                raise RolloutError(
                    f"the adapter of job {source} was made by sessions of covey swarm, from drawn numbers",
                    "take a job that devices have trained; see: covey job list",
                )
            closed = queries.closed_rounds(self._ledger, job.name)
            bundle = bundle or job.bundle_path
            path = self._blobs.whole(closed[-1].result_sha256) if closed else None
            if path is None:
                raise RolloutError(f"job {source} has no adapter on this server", "see: covey job show")
        else:
            path = _file(source, "nor is it the name of a job")
        if bundle is None:
            raise ConfigError("the bundle of the adapter is not named", "give --bundle, or the name of a job")
        whole = _whole_bundle(bundle)
        check_finite(map_adapter(path, total_size(whole.manifest.parameters)))
        kept = self._keep(path, "bin")
        return Offer("adapter", kept.stem, kept.stat().st_size, str(kept), whole.sha256, str(whole.path))

    def _wheel(self, path: Path) -> Offer:
        if not WHEEL_NAME.match(path.name) or not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is no wheel", "build one with: python -m build --wheel")
        sha256 = file_sha256(path)
        kept = self._keep(path, None)
        return Offer("wheel", sha256, kept.stat().st_size, str(kept))

    def _keep(self, path: Path, suffix: str | None) -> Path:
        """Copy a file, under its hash; or under its own name in a folder of its hash."""
        sha256 = file_sha256(path)
        target = self._folder / f"{sha256}.{suffix}" if suffix else self._folder / sha256 / path.name
        partial = target.with_name(f"{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial)
            sync_file(partial)
            if file_sha256(partial) != sha256:
                raise ConfigError(f"{path} changes while it is read", "try again once it is written")
            partial.replace(target)
            sync_directory(target.parent)
        except OSError as error:
            raise storage_error(error, target) from error
        return target


def _file(source: str, beside: str = "") -> Path:
    path = Path(source)
    if not path.is_absolute() or not path.is_file():
        also = f", {beside}" if beside else ""
        raise ConfigError(f"{source} is no file on the server's machine{also}", "give an absolute path there")
    return path


def _whole_bundle(source: str) -> Bundle:
    if not Path(source).is_absolute():
        raise ConfigError(f"{source} is no absolute path", "give the bundle's absolute path on the server's machine")
    bundle = open_bundle(Path(source))
    verify_files(bundle)
    return bundle
