"""Uploads a blob to the server, resumably: the core of the tus protocol 1.0 (HEAD for the offset, PATCH from there)."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, storage_error
from edge_runtime.network.fetch import TIMEOUT_S, BrokenTransferError, try_again

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK_BYTES = 1 << 20
_VERSION = {"Tus-Resumable": "1.0.0"}


def upload(blob_url: str, sha256: str, path: Path, sleep: Callable[[float], None] = time.sleep) -> int:
    """Upload a file that the server expects; continues where an earlier attempt stopped, also after a restart.

    Args:
        blob_url: uploads are at ``<blob_url>/<sha256>/upload``.
        sha256: the hash of the whole file.
        path: the file.
        sleep: waits between attempts, in seconds; passed in for tests.

    Returns:
        Bytes sent.

    Raises:
        NetworkError: the server does not expect it, refuses it, or cannot be reached.
        StorageError: the file cannot be read.
    """
    url, sent = f"{blob_url.rstrip('/')}/{sha256}/upload", 0

    def attempt() -> None:
        nonlocal sent
        with path.open("rb") as file:
            size = path.stat().st_size
            offset = _offset(_request(url, "HEAD"))
            while offset < size:
                file.seek(offset)
                chunk = file.read(_CHUNK_BYTES)
                answer = _request(url, "PATCH", chunk, offset)
                sent += len(chunk)
                offset = _offset(answer)

    try:
        try_again(attempt, sleep, f"send {blob_url}/{sha256[:12]}…")
    except OSError as error:
        raise storage_error(error, path) from error
    return sent


def _request(url: str, method: str, data: bytes | None = None, offset: int = 0) -> http.client.HTTPResponse:
    headers = dict(_VERSION)
    if data is not None:
        headers |= {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 checked by blob_base
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            answer: http.client.HTTPResponse = response
            answer.read()
            return answer
    except urllib.error.HTTPError as error:
        reason = error.read(500).decode(errors="replace")
        if error.code < http.client.INTERNAL_SERVER_ERROR and error.code not in (
            http.client.CONFLICT,
            http.client.LOCKED,
        ):
            raise NetworkError(
                f"the server refused the upload: {error.code} {reason}", "read the server's log"
            ) from error
        raise BrokenTransferError(f"the server answered {error.code} {reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(str(error)) from error


def _offset(answer: http.client.HTTPResponse) -> int:
    try:
        return int(answer.headers["Upload-Offset"])
    except (TypeError, ValueError) as error:
        raise BrokenTransferError("the server named no Upload-Offset") from error
