"""Receives blobs that devices send: only announced ones, resumable, and checked against their hash.

This is the core of the tus protocol 1.0: HEAD returns how many bytes have arrived, PATCH continues from there.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.hashing import file_sha256

if TYPE_CHECKING:
    from starlette.requests import Request

    from edge_runtime.protocol.plans import BlobRef
    from server.storage.blobs import BlobStore

_HEADERS = {"Tus-Resumable": "1.0.0", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class _Expected:
    """A blob that may be sent, the job that waits for it, and the devices that have announced it."""

    size_bytes: int
    job: str
    devices: frozenset[str]


class Uploads:
    """The blobs that devices may send; none until ``expect`` names it. Safe to use from several threads.

    Args:
        blobs: where complete uploads go. It must not be the store that is served: a device may name any hash, and the
            blobs that it named are deleted in the end.

    Attributes:
        blobs: where complete uploads go.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self._expected: dict[str, _Expected] = {}
        self._at_work: set[str] = set()
        self._lock = threading.Lock()

    def expect(self, blob: BlobRef, job: str, device: str) -> None:
        """Allow a blob to be sent for a job, by the device that has announced it; others may have announced it too."""
        with self._lock:
            before = self._expected.get(blob.sha256)
            devices = {device} if before is None else before.devices | {device}
            self._expected[blob.sha256] = _Expected(blob.size_bytes, job, frozenset(devices))

    def forget_all(self, job: str) -> None:
        """Allow no blob of a job any more, and delete what has arrived: its round is over."""
        with self._lock:
            of_job = {sha256 for sha256, expected in self._expected.items() if expected.job == job}
            for sha256 in of_job:
                del self._expected[sha256]
            self.blobs.drop_partials(except_for=self._at_work | self._expected.keys())
            unwanted = of_job - self._at_work
        for sha256 in unwanted:  # a bucket may take a while, and nobody may send them any more
            self.blobs.remove(sha256)

    def _size(self, sha256: str, member: str | None) -> int:
        with self._lock:
            expected = self._expected.get(sha256)
            if expected is None or (member is not None and member not in expected.devices):
                raise HTTPException(404, "no open plan expects this blob", _HEADERS)
            return expected.size_bytes

    def _have(self, sha256: str, size: int) -> int:
        if self.blobs.path(sha256) is not None:
            return size
        partial = self.blobs.partial(sha256)
        return partial.stat().st_size if partial.exists() else 0

    async def head(self, sha256: str, member: str | None) -> Response:
        """Answer how many bytes of an expected blob have arrived; 404: it is not expected, or not of this member."""
        size = self._size(sha256, member)
        have = await asyncio.to_thread(self._have, sha256, size)
        return Response(headers=_HEADERS | {"Upload-Offset": str(have), "Upload-Length": str(size)})

    async def patch(self, sha256: str, request: Request, member: str | None) -> Response:
        """Receive more of an expected blob.

        404: the blob is not expected, or not of this member (None: nobody knows who asks); 409: the request does not
        start at the upload's offset; 413: more bytes than announced; 423: another request is sending it; 460: all bytes
        have arrived but their hash is another one (they are deleted).
        """
        size = self._size(sha256, member)
        with self._lock:
            if sha256 in self._at_work:
                raise HTTPException(423, "another request sends this blob", _HEADERS)
            self._at_work.add(sha256)
        try:
            have = await asyncio.to_thread(self._have, sha256, size)
            if request.headers.get("upload-offset") != str(have):
                raise HTTPException(409, f"the upload goes on at {have}", _HEADERS)
            if have < size:
                have = await self._append(sha256, have, size, request)
        finally:
            with self._lock:
                self._at_work.discard(sha256)
        return Response(status_code=204, headers=_HEADERS | {"Upload-Offset": str(have)})

    async def _append(self, sha256: str, have: int, size: int, request: Request) -> int:
        partial = self.blobs.partial(sha256)
        try:
            with partial.open("ab") as file:
                async for chunk in request.stream():
                    if have + len(chunk) > size:
                        raise HTTPException(413, f"more than the announced {size} bytes", _HEADERS)
                    file.write(chunk)
                    have += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            if have == size:
                if await asyncio.to_thread(file_sha256, partial) != sha256:
                    partial.unlink()
                    raise HTTPException(460, "all bytes are here, and their hash is another one", _HEADERS)
                await asyncio.to_thread(self.blobs.adopt, partial, sha256)
        except ClientDisconnect as error:
            raise HTTPException(400, "the request broke off; what came is kept", _HEADERS) from error
        except OSError as error:
            raise HTTPException(507, str(storage_error(error, partial)), _HEADERS) from error
        except StorageError as error:
            raise HTTPException(507, str(error), _HEADERS) from error
        return have
