"""Receives blobs that devices send: only announced ones, resumable, and checked against their hash.

This is the core of the tus protocol 1.0: HEAD returns how many bytes have arrived, PATCH continues from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.hashing import file_sha256
from server.errors import BlobsAwayError
from server.web.blob_waits import BlobWaits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from edge_runtime.protocol.plans import BlobRef
    from server.storage.blobs import BlobStore

_MOST_FINISHED = 4
"""Blobs that are checked and stored at once; each needs a thread, perhaps until a bucket has answered."""
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
        self._waits = BlobWaits()
        self._finishing = 0
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

    def _received(self, sha256: str) -> int | None:
        """Return how many bytes of a blob lie here in a file that is no blob yet; None: there is no such file."""
        partial = self.blobs.partial(sha256)
        return partial.stat().st_size if partial.exists() else None

    async def _have(self, sha256: str) -> int | None:
        """Return how many bytes of a blob have arrived; None: all of them, and it is there."""
        if await run_in_threadpool(self.blobs.here, sha256) is not None:
            return None
        received = await run_in_threadpool(self._received, sha256)
        if received is None:
            return 0 if await self._waits.path(self.blobs, sha256, _HEADERS) is None else None
        return received

    async def head(self, sha256: str, member: str | None) -> Response:
        """Answer how many bytes of an expected blob have arrived.

        404: it is not expected, or not of this member; 423: another request is sending it; 503: what has the blobs
        does not answer, come again.
        """
        size = self._size(sha256, member)
        have = await self._have(sha256)
        if have and have >= size:  # an earlier attempt to store it has failed
            with self._alone(sha256):
                await self._finish(sha256)
        offset = size if have is None else have
        return Response(headers=_HEADERS | {"Upload-Offset": str(offset), "Upload-Length": str(size)})

    async def patch(self, sha256: str, request: Request, member: str | None) -> Response:
        """Receive more of an expected blob.

        404: the blob is not expected, or not of this member (None: nobody knows who asks); 409: the request does not
        start at the upload's offset; 413: more bytes than announced; 423: another request is sending it; 460: all bytes
        have arrived but their hash is another one (they are deleted); 503: what has the blobs does not answer, come
        again (what came is kept).
        """
        size = self._size(sha256, member)
        with self._alone(sha256):
            have = await self._have(sha256)
            offset = size if have is None else have
            if request.headers.get("upload-offset") != str(offset):
                raise HTTPException(409, f"the upload goes on at {offset}", _HEADERS)
            if offset < size:
                offset = await self._append(sha256, offset, size, request)
            elif have:
                await self._finish(sha256)
        return Response(status_code=204, headers=_HEADERS | {"Upload-Offset": str(offset)})

    @contextlib.contextmanager
    def _alone(self, sha256: str) -> Iterator[None]:
        """Keep other requests from a blob while the block works on it."""
        with self._lock:
            if sha256 in self._at_work:
                raise HTTPException(423, "another request sends this blob", _HEADERS)
            self._at_work.add(sha256)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(sha256)

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
                await self._finish(sha256)
        except ClientDisconnect as error:
            raise HTTPException(400, "the request broke off; what came is kept", _HEADERS) from error
        except OSError as error:
            raise HTTPException(507, str(storage_error(error, partial)), _HEADERS) from error
        return have

    async def _finish(self, sha256: str) -> None:
        """Check a file that has all bytes, and make it a blob; where that is not possible now, the file stays."""
        partial = self.blobs.partial(sha256)
        if self._finishing >= _MOST_FINISHED:
            raise self._waits.come_again("as many deltas as may be are being stored", _HEADERS)
        self._finishing += 1
        try:
            if await run_in_threadpool(self.blobs.here, sha256) is not None:
                return  # another request has done it
            if await asyncio.to_thread(file_sha256, partial) != sha256:
                partial.unlink()
                raise HTTPException(460, "all bytes are here, and their hash is another one", _HEADERS)
            await asyncio.to_thread(lambda: self.blobs.adopt(partial, sha256, at_once=True))
        except BlobsAwayError as error:
            raise self._waits.come_again(error.what, _HEADERS) from error
        except OSError as error:
            raise HTTPException(507, str(storage_error(error, partial)), _HEADERS) from error
        except StorageError as error:
            raise HTTPException(507, str(error), _HEADERS) from error
        finally:
            self._finishing -= 1
