"""Blobs in a bucket, with copies in a folder: what is added is in the bucket first, what is read is copied once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from typing import TYPE_CHECKING

from edge_runtime.files.aside import BAD, remove
from server.storage.blobs import BlobStore

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.protocol.plans import BlobRef
    from server.storage.bucket import Bucket

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BucketBlobs(BlobStore):
    """A folder of a bucket, in which objects are named by their hash.

    Several servers may have the same one, each with a folder for its own copies. A copy is whole: its hash was checked
    when it was made.

    Args:
        bucket: the bucket.
        folder: the folder's name below the bucket's prefix.
        copies: where this server keeps copies.
    """

    def __init__(self, bucket: Bucket, folder: str, copies: Path) -> None:
        super().__init__(copies)
        self._bucket, self._folder = bucket, folder
        self._unwanted: set[str] = set()
        self._lock = threading.Lock()

    def drop_old_copies(self) -> None:
        """Delete copies of what another server has removed from the bucket, and files that nobody has finished.

        Raises:
            StorageError: the bucket stays away.
        """
        there = self._bucket.names(self._folder)
        for path in list(self.root.glob("*")):
            if path.suffix == ".tmp" or (_SHA256.fullmatch(path.name) and path.name not in there):
                with contextlib.suppress(OSError):  # it is in nobody's way
                    remove(path)

    def place(self, sha256: str) -> str:
        """See BlobStore."""
        return f"{self._bucket.place}/{self._key(sha256)}"

    def add(self, data: bytes) -> BlobRef:
        """See BlobStore."""
        self._put(hashlib.sha256(data).hexdigest(), data)
        return super().add(data)

    def adopt(self, path: Path, sha256: str) -> BlobRef:
        """See BlobStore."""
        self._put(sha256, path)
        return super().adopt(path, sha256)

    def remove(self, sha256: str) -> None:
        """See BlobStore. Where the bucket is away, the object is removed with a later one."""
        if sha256 in self._elsewhere:
            return
        super().remove(sha256)
        with self._lock:
            self._unwanted.add(sha256)
            for unwanted in sorted(self._unwanted):
                if not self._bucket.try_to_remove(self._key(unwanted)):
                    break
                self._unwanted.discard(unwanted)

    def has(self, sha256: str) -> bool:
        """See BlobStore."""
        return super().has(sha256) or (_SHA256.fullmatch(sha256) is not None and self._bucket.has(self._key(sha256)))

    def path(self, sha256: str) -> Path | None:
        """Return the path of a copy, which is made where there is none; None: the bucket has no such blob.

        Raises:
            StorageError: the bucket stays away, or the copy cannot be written.
        """
        found = self._here(sha256)
        return self._copied(sha256) if found is None and _SHA256.fullmatch(sha256) else found

    def whole(self, sha256: str) -> Path | None:
        """See BlobStore. A damaged copy is set aside, and the blob is fetched again."""
        return super().whole(sha256) or self.path(sha256)

    def _copied(self, sha256: str) -> Path | None:
        """Copy a blob from the bucket; one that is damaged there is set aside there."""
        made = self.temporary()
        found = self._bucket.fetch(self._key(sha256), made)
        if found is None:
            return None
        if found == sha256:
            super().adopt(made, sha256)
            return self._here(sha256)
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        aside = f"{self._key(sha256)}{BAD}"
        self._bucket.rename(self._key(sha256), aside)
        _LOG.warning(
            "the content of %s is not what its name says; it is set aside as %s/%s",
            self.place(sha256),
            self._bucket.place,
            aside,
        )
        return None

    def _put(self, sha256: str, data: bytes | Path) -> None:
        with self._lock:  # it may have been removed before, while the bucket was away
            self._unwanted.discard(sha256)
        self._bucket.put(self._key(sha256), data)

    def _key(self, sha256: str) -> str:
        return f"{self._folder}/{sha256}"
