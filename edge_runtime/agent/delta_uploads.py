"""Uploads a round's delta when the server asks for it, a limited number of times."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from edge_runtime.network.upload import upload

if TYPE_CHECKING:
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.store.store import Store

_MOST_UPLOADS = 3  # of one delta: a server that has lost it may ask again


class DeltaUploads:
    """Uploads deltas and counts the uploads of each.

    Args:
        store: the state directory that holds the deltas.
        tls: this device's TLS files, for a server with https.
    """

    def __init__(self, store: Store, tls: TlsFiles | None = None) -> None:
        self._store, self._tls = store, tls
        self._uploads: collections.Counter[str] = collections.Counter()

    def send(self, sha256: str, blob_url: str | None) -> None:
        """Upload a delta.

        Args:
            sha256: the delta's name.
            blob_url: the server's blobs; None: no plan has told it yet.

        Raises:
            NetworkError: the server cannot be reached, refuses the delta, or has asked for it too often; or its address
                is not known.
            StorageError: the delta cannot be read.
        """
        self._uploads[sha256] += 1
        if blob_url is None:
            raise NetworkError("no plan has told the server's address since the device started", "send the plan again")
        if self._uploads[sha256] > _MOST_UPLOADS:
            raise NetworkError(
                f"the server has asked for the same delta more than {_MOST_UPLOADS} times", "read the server's log"
            )
        upload(blob_url, sha256, self._store.delta_file(sha256), tls=self._tls)
