"""A request that waits for a blob from a bucket: not for long, and without a thread; then it is told to come again."""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from edge_runtime.errors import StorageError
from edge_runtime.network.http_causes import COME_AGAIN
from server.web.blob_answers import NEVER_CACHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from server.storage.blobs import BlobStore

_LOG = logging.getLogger(__name__)
PATIENCE_S = 10.0
"""Seconds that a request waits for a blob that is being copied; a device's patience with the server is longer."""
_AGAIN_S = 5
"""Seconds after which a device is to ask again."""
_SAY_AGAIN_S = 60.0


class BlobWaits:
    """What requests for blobs that are not here wait for.

    Args:
        patience_s: how long one waits, in seconds.
        clock: monotonic seconds.
    """

    def __init__(self, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._said_at: float | None = None

    async def path(self, blobs: BlobStore, sha256: str, headers: Mapping[str, str] | None = None) -> Path | None:
        """Return a blob's path, from a bucket where it is not here; None: there is no such blob.

        Args:
            blobs: the store.
            sha256: the blob's name.
            headers: of an answer that there is none yet.

        Raises:
            HTTPException: 503, with ``Retry-After``: what has the blobs does not answer, or takes long.
        """
        here = await run_in_threadpool(blobs.here, sha256)
        if here is not None:
            return here
        looking = blobs.sought(sha256)
        if looking is None:
            raise self.come_again("as many blobs as may be are being copied", headers)
        done, _ = await asyncio.wait([asyncio.wrap_future(looking)], timeout=self._patience_s)
        if not done:
            raise self.come_again(f"{blobs.place(sha256)} takes longer than {self._patience_s:g} s", headers)
        found = done.pop().result()
        if isinstance(found, StorageError):
            raise self.come_again(found.what, headers)
        return found

    def come_again(self, cause: str, headers: Mapping[str, str] | None = None) -> HTTPException:
        """Return the answer that a device is to ask again later; the server's log has the cause, once a minute."""
        now = self._clock()
        if self._said_at is None or now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _LOG.warning("devices that ask for blobs are told to come again: %s", cause)
        own = {"cache-control": NEVER_CACHED, "retry-after": str(_AGAIN_S)}
        return HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, COME_AGAIN, {**(headers or {}), **own})
