"""Blobs in a bucket, with copies in a folder: what is added is in the bucket first, what is read is copied once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from typing import TYPE_CHECKING

from edge_runtime.files.aside import BAD, remove
from server.storage.blobs import BlobStore
from server.storage.bucket import AT_ONCE_S, MOST_AT_ONCE
from server.storage.fetches import Fetches, OneEach, found_now
from server.storage.postgres_database import LOST_S
from server.storage.removals import Removals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future
    from pathlib import Path

    from edge_runtime.protocol.plans import BlobRef
    from server.storage.bucket import Bucket
    from server.storage.fetches import Found

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOTE = "unwanted.txt"


class BucketBlobs(BlobStore):
    """A folder of a bucket, in which objects are named by their hash.

    Several servers may have the same one, each with a folder for its own copies. A copy is whole: its hash was checked
    when it was made.

    Args:
        bucket: the bucket.
        folder: the folder's name below the bucket's prefix.
        copies: where this server keeps copies.
        is_ours: whether this server is the one that writes now; asked before anything is removed.
    """

    def __init__(self, bucket: Bucket, folder: str, copies: Path, is_ours: Callable[[], bool] = lambda: True) -> None:
        super().__init__(copies)
        self._bucket, self._folder = bucket, folder
        self._removals = Removals(bucket, folder, copies / _NOTE, is_ours, MOST_AT_ONCE)
        self._one_each = OneEach()
        self._fetches = Fetches(lambda sha256: self._copied(sha256, AT_ONCE_S))

    def begin(self, wanted: Callable[[], Collection[str]]) -> None:
        """Tidy up after an earlier server: go on with what it had still to remove, and delete what it left here.

        Copies of what another server has removed from the bucket are deleted, and files that nobody has finished.

        Args:
            wanted: returns the hashes of blobs that must not be removed; asked only where something is left to remove.

        Raises:
            StorageError: the bucket stays away, or the ledger cannot be read.
        """
        self._removals.go_on(wanted)
        there = self._bucket.names(self._folder)
        for path in list(self.root.glob("*")):
            if path.suffix == ".tmp" or (_SHA256.fullmatch(path.name) and path.name not in there):
                with contextlib.suppress(OSError):  # it is in nobody's way
                    remove(path)

    def close(self, limit_s: float) -> None:
        """See BlobStore. What is not removed by then is removed by the next server."""
        self._removals.settle(limit_s)

    def place(self, sha256: str) -> str:
        """See BlobStore."""
        return f"{self._bucket.place}/{self._key(sha256)}"

    def add(self, data: bytes) -> BlobRef:
        """See BlobStore."""
        self._put(hashlib.sha256(data).hexdigest(), data)
        return super().add(data)

    def adopt(self, path: Path, sha256: str, *, at_once: bool = False) -> BlobRef:
        """See BlobStore."""
        self._put(sha256, path, AT_ONCE_S if at_once else LOST_S)
        return super().adopt(path, sha256)

    def remove(self, sha256: str) -> None:
        """See BlobStore. The object is removed in the background; where the bucket is away, with a later one."""
        if sha256 in self._elsewhere:
            return
        super().remove(sha256)
        self._removals.add(sha256)

    def has(self, sha256: str) -> bool:
        """See BlobStore."""
        return super().has(sha256) or (self._may_be_there(sha256) and self._bucket.has(self._key(sha256)))

    def path(self, sha256: str) -> Path | None:
        """Return the path of a copy, which is made where there is none; None: the bucket has no such blob.

        Raises:
            BlobsAwayError: the bucket stays away.
            StorageError: it refuses, or the copy cannot be written.
        """
        return self.here(sha256) or self._copied(sha256, LOST_S)

    def sought(self, sha256: str) -> Future[Found] | None:
        """See BlobStore."""
        found = self.here(sha256)
        if found is not None or not self._may_be_there(sha256):
            return found_now(found)
        return self._fetches.begin(sha256)

    def _may_be_there(self, sha256: str) -> bool:
        return _SHA256.fullmatch(sha256) is not None and sha256 not in self._removals

    def whole(self, sha256: str) -> Path | None:
        """See BlobStore. A damaged copy is set aside, and the blob is fetched again."""
        return super().whole(sha256) or self.path(sha256)

    def _copied(self, sha256: str, limit_s: float) -> Path | None:
        """Copy a blob from the bucket, unless another thread just does; wait so long for a bucket that is away."""
        if not self._may_be_there(sha256):
            return None
        with self._one_each.alone(sha256):
            return self.here(sha256) or self._fetched(sha256, limit_s)

    def _fetched(self, sha256: str, limit_s: float) -> Path | None:
        """Copy a blob from the bucket; one that is damaged there is set aside there."""
        made = self.temporary()
        found = self._bucket.fetch(self._key(sha256), made, limit_s)
        if found is None:
            return None
        if found == sha256:
            super().adopt(made, sha256)
            return self.here(sha256)
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

    def _put(self, sha256: str, data: bytes | Path, limit_s: float = LOST_S) -> None:
        self._removals.keep(sha256)  # it may have been removed before, and be there still
        self._bucket.put(self._key(sha256), data, limit_s)

    def _key(self, sha256: str) -> str:
        return f"{self._folder}/{sha256}"
