"""The device's state directory: bundles, adapters and the journal. Every file in it is whole: files appear by rename.

::

    state_dir/
      bundles/<sha256>/           checked bundles; ``<sha256>.partial/`` is one being fetched
      bundles/<sha256>.release    the fleet's signature of that bundle, on a device with pinned release keys
      adapters/<sha256>.bin       the current adapter and the one before it
      moments/<sha256>.bin        the moments beside these two, where the job's rule keeps one
      personal/<sha256>.safetensors  the layers of the current job that stay here
      deltas/<sha256>.safetensors    the delta of the last report, until the next round
      fronts/                     activations of frozen fronts: see edge_runtime/fronts
      journal.json                which bundle and adapter are current, and the last report
      versions.json, released/    which version is in use: see versions.py
      too_old.json                what the server last found too old here, and the versions that were installed
      accuracies.json             how well the model did on held-out rows
      trials.json                 which bundles were tried here, with which libraries, and how the last trial failed

What is damaged and can be had again is removed and fetched again; what cannot is set aside as ``<name>.bad``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.aside import is_set_aside, remove, set_aside
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.files.checked import encode_checked
from edge_runtime.store.journal import JOURNAL_FILE, Journal, read_journal

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_KEPT_ADAPTERS = 2


class Store:
    """A state directory.

    Raises:
        StorageError: it cannot be created.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.make_folders()
        try:
            for folder in (self._adapters, self._moments):
                for left_over in (*folder.glob("*.partial"), *folder.glob("*.before")):
                    remove(left_over)
        except OSError as error:
            raise storage_error(error, root) from error

    def make_folders(self) -> None:
        """Make the folders that are not there: a new device has none, and somebody may remove them while it runs.

        Raises:
            StorageError: one cannot be made, or a file is in its place.
        """
        for folder in (self.bundles, self._adapters, self._moments, self._personal, self._deltas):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise StorageError(
                    f"{error.filename} is a file, and Covey's folder is to be there",
                    "move it away, or set state_dir in edge.toml",
                ) from error
            except OSError as error:
                raise storage_error(error, folder) from error

    @property
    def bundles(self) -> Path:
        """Folder of the bundles."""
        return self.root / "bundles"

    @property
    def _adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def _moments(self) -> Path:
        return self.root / "moments"

    @property
    def _personal(self) -> Path:
        return self.root / "personal"

    @property
    def _deltas(self) -> Path:
        return self.root / "deltas"

    @property
    def _journal_file(self) -> Path:
        return self.root / JOURNAL_FILE

    def journal(self) -> Journal:
        """Return the journal; an empty one on a new device.

        Raises:
            JournalDamagedError: its content is no journal of this version.
            StorageError: it cannot be read.
        """
        return read_journal(self._journal_file)

    def set_journal_aside(self, why: str) -> None:
        """Set the journal aside, which is damaged; ``why`` is said in the log.

        Raises:
            StorageError: it cannot be renamed.
        """
        set_aside(self._journal_file, why)

    def write_journal(self, journal: Journal) -> None:
        """Replace the journal."""
        write_atomically(self._journal_file, encode_checked(journal))

    def adapter_file(self, sha256: str) -> Path:
        """Return the path of an adapter, which may not exist."""
        return self._adapters / f"{sha256}.bin"

    def moment_file(self, sha256: str) -> Path:
        """Return the path of a moment, which may not exist."""
        return self._moments / f"{sha256}.bin"

    def keep_adapter(self, path: Path, sha256: str) -> None:
        """Rename a whole, synced file to the adapter of this hash, and remove old adapters.

        Raises:
            StorageError: it cannot be renamed.
        """
        self._keep(path, self.adapter_file(sha256))

    def keep_moment(self, path: Path, sha256: str) -> None:
        """Rename a whole, synced file to the moment of this hash, and remove old moments.

        Raises:
            StorageError: it cannot be renamed.
        """
        self._keep(path, self.moment_file(sha256))

    def _keep(self, path: Path, target: Path) -> None:
        try:
            if target.is_dir():
                set_aside(target, f"{target} is a folder, and the file of an adapter or a moment is to be there")
            path.replace(target)
            sync_directory(target.parent)
        except OSError as error:
            raise storage_error(error, target) from error
        self.forget_old_adapters()

    def forget_adapter(self, sha256: str) -> None:
        """Remove an adapter that is damaged: it can be had again.

        Raises:
            StorageError: it cannot be removed.
        """
        self._forget(self.adapter_file(sha256))

    def forget_moment(self, sha256: str) -> None:
        """Remove a moment that is damaged: it can be had again.

        Raises:
            StorageError: it cannot be removed.
        """
        self._forget(self.moment_file(sha256))

    @staticmethod
    def _forget(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error

    def forget_old_adapters(self) -> None:
        """Remove all but the newest adapters and the newest moments.

        Raises:
            StorageError: the folder cannot be read, or a file not be removed.
        """
        try:
            for folder in (self._adapters, self._moments):
                kept = sorted(folder.glob("*.bin"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
                for path in kept[_KEPT_ADAPTERS:]:
                    remove(path)
        except OSError as error:
            raise storage_error(error, self._adapters) from error

    def personal_file(self, sha256: str) -> Path:
        """Return the path of personal layers, which may not exist."""
        return self._personal / f"{sha256}.safetensors"

    def personal_files(self) -> list[Path]:
        """Return the files of personal layers, the newest first.

        Raises:
            StorageError: the folder cannot be read.
        """
        try:
            found = self._personal.glob("*.safetensors")
            return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError as error:
            raise storage_error(error, self._personal) from error

    def delta_file(self, sha256: str) -> Path:
        """Return the path of a delta, which may not exist."""
        return self._deltas / f"{sha256}.safetensors"

    def keep_only(self, personal: Collection[str | None], delta_sha256: str | None) -> None:
        """Remove personal layers and deltas but these and what was set aside; call it after the journal names them.

        Raises:
            StorageError: a folder cannot be read, or a file not be removed.
        """
        kept = {self.personal_file(sha256) for sha256 in personal if sha256 is not None}
        kept.add(self.delta_file(delta_sha256 or ""))
        try:
            for folder in (self._personal, self._deltas):
                folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed the state directory
                for path in folder.iterdir():
                    if path not in kept and not is_set_aside(path):
                        remove(path)
        except OSError as error:
            raise storage_error(error, self.root) from error


def current_adapter(store: Store) -> tuple[Path, Path] | None:
    """Return the folder of the current bundle and the file of the current adapter; None before the first round."""
    journal = store.journal()
    if journal.bundle_sha256 is None or journal.adapter_sha256 is None:
        return None
    return store.bundles / journal.bundle_sha256, store.adapter_file(journal.adapter_sha256)
