"""Blobs named by their sha256, which the HTTP side serves and receives."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.errors import storage_error, system_error
from edge_runtime.files.aside import remove, set_aside
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.files.hashing import file_sha256
from edge_runtime.protocol.plans import BlobRef
from server.storage.fetches import found_now

if TYPE_CHECKING:
    from collections.abc import Collection
    from concurrent.futures import Future
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from server.storage.fetches import Found


class BlobStore:
    """A folder of files named by their hash, and bundles that are served from their own folders.

    bucket_blobs.py has the store whose blobs are in a bucket, and whose folder has copies of them.

    Args:
        root: the folder; created when the first blob is added.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._elsewhere: dict[str, Path] = {}

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def place(self, sha256: str) -> str:
        """Return where a blob is, or would be, as messages name it."""
        return str(self._root / sha256)

    def has(self, sha256: str) -> bool:
        """Whether there is such a blob.

        Raises:
            StorageError: nobody can say.
        """
        return self.here(sha256) is not None

    def add(self, data: bytes) -> BlobRef:
        """Store a blob; when this returns, the blob survives a power cut.

        Raises:
            StorageError: the disk is full or not writable.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._is_whole(sha256):  # what is there may be damaged: devices would be given it for ever
            write_atomically(self._root / sha256, data)
        return BlobRef(sha256, len(data))

    def temporary(self) -> Path:
        """Return a path on the same disk for a new file, which adopt turns into a blob.

        Raises:
            StorageError: the folder cannot be created.
        """
        return self._made_root() / f"new-{uuid.uuid4().hex}.tmp"

    def _made_root(self) -> Path:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self._root) from error
        return self._root

    def partial(self, sha256: str) -> Path:
        """Return the path of a blob that is still being received; adopt turns it into a blob.

        Raises:
            StorageError: the folder cannot be created.
        """
        return self._made_root() / f"{sha256}.part"

    def drop_partials(self, except_for: Collection[str]) -> None:
        """Delete blobs that were received in part only, except those with these hashes."""
        for path in self._root.glob("*.part"):
            if path.stem not in except_for:
                with contextlib.suppress(OSError):
                    remove(path)

    def adopt(self, path: Path, sha256: str, *, at_once: bool = False) -> BlobRef:
        """Turn a complete, synced file into a blob.

        Args:
            path: the file.
            sha256: its hash.
            at_once: whether nobody waits for a place of the blobs that is away; a folder never is.

        Raises:
            BlobsAwayError: it is away; the file stays as it is.
            StorageError: the file cannot be renamed.
        """
        del at_once  # of other stores
        target = self._root / sha256
        try:
            if target.is_dir():
                set_aside(target, f"{target} is a folder, and a file is to be there")
            path.replace(target)
            sync_directory(self._root)
            return BlobRef(sha256, target.stat().st_size)
        except OSError as error:
            raise storage_error(error, path) from error

    def close(self, limit_s: float) -> None:
        """End what goes on in the background; wait at most so many seconds for it."""

    def remove(self, sha256: str) -> None:
        """Delete a blob; a bundle's files are never deleted."""
        if sha256 not in self._elsewhere:
            with contextlib.suppress(OSError):  # it is not needed any more, and in nobody's way
                (self._root / sha256).unlink(missing_ok=True)

    def _is_whole(self, sha256: str) -> bool:
        path = self._root / sha256
        try:
            return path.is_file() and file_sha256(path) == sha256
        except OSError as error:
            raise system_error(error) from error

    def whole(self, sha256: str) -> Path | None:
        """Return the path of a blob whose content has its hash; None: there is none. A damaged one is set aside.

        Raises:
            StorageError: it cannot be read, or not be set aside.
        """
        path = self.here(sha256)
        if path is None or sha256 in self._elsewhere or self._is_whole(sha256):
            return path
        set_aside(path, f"the content of {path} is not what its name says")
        return None

    def read(self, sha256: str) -> bytes | None:
        """Return a blob's bytes, whose hash is not checked; None: there is no such blob.

        Raises:
            StorageError: it cannot be read.
        """
        path = self.path(sha256)
        try:
            return path.read_bytes() if path is not None else None
        except OSError as error:
            raise system_error(error) from error

    def path(self, sha256: str) -> Path | None:
        """Return a blob's path; None: there is no such blob."""
        return self.here(sha256)

    def sought(self, sha256: str) -> Future[Found] | None:
        """Look for a blob that is not here in the background; None: too many are looked for, it is to be asked later.

        A folder has nothing but what is here.
        """
        return found_now(self.here(sha256))

    def here(self, sha256: str) -> Path | None:
        """Return the path that a blob has on this machine; None: it is not here."""
        if sha256 in self._elsewhere:
            return self._elsewhere[sha256]
        path = self._root / sha256
        return path if len(sha256) == 64 and sha256.isalnum() and path.is_file() else None

    def add_bundle(self, bundle: Bundle) -> None:
        """Serve a checked bundle's files from its own folder."""
        self._elsewhere[bundle.sha256] = bundle.path / MANIFEST_FILE
        for entry in bundle.manifest.files:
            self._elsewhere[entry.sha256] = bundle.path / entry.path

    def add_file(self, sha256: str, path: Path) -> None:
        """Serve a checked file from where it is; it is never deleted."""
        self._elsewhere[sha256] = path
