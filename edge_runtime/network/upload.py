"""Uploads a blob to the server, resumably: the core of the tus protocol 1.0 (HEAD for the offset, PATCH from there)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error
from edge_runtime.network.fetch import try_again
from edge_runtime.network.https import BrokenTransferError, Https

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.network.address import TlsFiles

PIECE_BYTES = 1 << 20
"""Bytes of one request; a proxy before the server must let bodies of this size through."""
_VERSION = {"Tus-Resumable": "1.0.0"}


def upload(
    blob_url: str,
    sha256: str,
    path: Path,
    sleep: Callable[[float], None] = time.sleep,
    *,
    tls: TlsFiles | None = None,
) -> int:
    """Upload a file that the server expects; continues where an earlier attempt stopped, also after a restart.

    Args:
        blob_url: uploads are at ``<blob_url>/<sha256>/upload``.
        sha256: the hash of the whole file.
        path: the file.
        sleep: waits between attempts, in seconds; passed in for tests.
        tls: this member's TLS files; see Fetcher.

    Returns:
        Bytes sent.

    Raises:
        NetworkError: the server does not expect it, refuses it, or cannot be reached.
        StorageError: the file cannot be read.
        ConfigError: the TLS files cannot be used.
    """
    https, sent = Https(blob_url.rstrip("/"), tls), 0
    resource = f"/{sha256}/upload"

    def attempt() -> None:
        nonlocal sent
        with path.open("rb") as file:
            size = path.stat().st_size
            offset = _offset(_request(https, resource, "HEAD"))
            while offset < size:
                file.seek(offset)
                chunk = file.read(PIECE_BYTES)
                answer = _request(https, resource, "PATCH", chunk, offset)
                sent += len(chunk)
                offset = _offset(answer)

    try:
        try_again(attempt, sleep, f"send {blob_url}/{sha256[:12]}…")
    except OSError as error:
        raise storage_error(error, path) from error
    return sent


def _request(
    https: Https, resource: str, method: str, data: bytes | None = None, offset: int = 0
) -> http.client.HTTPResponse:
    headers = dict(_VERSION)
    if data is not None:
        headers |= {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    with https.open(method, resource, headers, data) as answer:
        answer.read()
        return answer


def _offset(answer: http.client.HTTPResponse) -> int:
    try:
        return int(answer.headers["Upload-Offset"])
    except (TypeError, ValueError) as error:
        raise BrokenTransferError("the server named no Upload-Offset") from error
