"""Blobs in a folder or in a bucket, for tests that hold for both."""

from __future__ import annotations

from pathlib import Path

from s3 import S3

from server.storage.blobs import BlobStore
from server.storage.bucket import Bucket
from server.storage.bucket_blobs import BucketBlobs

ENOUGH_S = 120.0


class KeptBlobs:
    """A store, opened anew by each call: what one server has, and what the one after it finds."""

    def __init__(self, root: Path, s3: S3 | None) -> None:
        self.root, self._s3 = root, s3
        self._opened: list[BlobStore] = []
        self.address = "" if s3 is None else s3.new_bucket()

    def open(self) -> BlobStore:
        self.end()
        if self._s3 is None:
            return BlobStore(self.root / "blobs")
        bucket = Bucket(self.address, self._s3.settings())
        copies = self.root / f"copies-{len(self._opened)}"  # on a machine of its own
        self._opened.append(BucketBlobs(bucket, "blobs", copies))
        return self._opened[-1]

    def end(self) -> None:
        """Let what the stores do in the background come to its end."""
        for store in self._opened:
            store.close(ENOUGH_S)

    def names(self) -> set[str]:
        """Return what is kept for good."""
        self.end()
        if self._s3 is None:
            return {path.name for path in (self.root / "blobs").glob("*")}
        return {name.removeprefix("blobs/") for name in self._s3.objects(self.address)}

    def damage(self, sha256: str) -> None:
        if self._s3 is None:
            (self.root / "blobs" / sha256).write_bytes(b"damaged")
        else:
            self._s3.write(self.address, f"blobs/{sha256}", b"damaged")
