"""Uploads a round's delta when the server asks for it, a limited number of times."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from edge_runtime.network.upload import upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.address import TlsFiles
    from edge_runtime.store.store import Store

_MOST_UPLOADS = 3  # in one attempt of a round: a server that has lost the delta may ask again


class DeltaUploads:
    """Uploads deltas and counts the uploads of one attempt of a round: another attempt may well have the same delta.

    Args:
        store: the state directory that holds the deltas.
        tls: this device's TLS files, for a server with https.
        pause: waits before a transfer is tried again, in seconds; what it raises ends the transfer.
    """

    def __init__(self, store: Store, tls: TlsFiles | None = None, pause: Callable[[float], None] = time.sleep) -> None:
        self._store, self._tls, self._pause = store, tls, pause
        self._attempt: tuple[str, int, int] | None = None
        self._uploads = 0

    def send(self, sha256: str, blob_url: str, attempt: tuple[str, int, int]) -> None:
        """Upload a delta.

        Args:
            sha256: the delta's name.
            blob_url: the server's blobs.
            attempt: job, round and attempt that the delta is for.

        Raises:
            NetworkError: the server cannot be reached, refuses the delta, or has had it too often.
            StorageError: the delta cannot be read.
        """
        if attempt != self._attempt:
            self._attempt, self._uploads = attempt, 0
        if self._uploads == _MOST_UPLOADS:
            raise NetworkError(
                f"the server was sent the same delta {_MOST_UPLOADS} times and asks for it again",
                "read the server's log",
            )
        upload(blob_url, sha256, self._store.delta_file(sha256), self._pause, tls=self._tls)
        self._uploads += 1
