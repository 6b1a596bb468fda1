"""How a blob is answered over HTTP: in parts of a file, with headers by which any cache may keep it for ever.

A blob is named by the hash of its bytes, so what is below a name never changes: its entity tag is the name, and a cache
need never ask again. Starlette reads the file in parts of CHUNK_BYTES, whatever its size; the kernel's sendfile cannot
be used for connections that Python's TLS encrypts, and a proxy with a cache in front of the server uses its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import FileResponse, Response

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 1 << 18
"""Bytes of a file that are read at once."""
CACHED_FOR_EVER = "public, max-age=31536000, immutable"
NEVER_CACHED = "no-store"
"""For an answer that may be another one tomorrow, as that there is no such blob yet."""


class _BlobResponse(FileResponse):
    chunk_size = CHUNK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__({**scope, "headers": self._without_if_range(scope["headers"])}, receive, send)

    def _without_if_range(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return a request's headers with a range only if its condition holds: older Starlettes know no other tag."""
        conditions = [value for name, value in headers if name == b"if-range"]
        left_out = [b"if-range"] + ([b"range"] if conditions and conditions != [self.headers["etag"].encode()] else [])
        return [(name, value) for name, value in headers if name not in left_out]


def blob_answer(request: Request, sha256: str, path: Path) -> Response:
    """Return the answer with a blob: whole, the range that is asked for, or 304 where the asker has it already.

    Args:
        request: GET or HEAD.
        sha256: the blob's name.
        path: its file.
    """
    headers = {"etag": f'"{sha256}"', "cache-control": CACHED_FOR_EVER}
    if _names(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(status_code=304, headers=headers)
    return _BlobResponse(path, media_type="application/octet-stream", headers=headers)


def _names(if_none_match: str, etag: str) -> bool:
    """Whether a header If-None-Match names an entity tag: a list of tags, weak or not, or a star (RFC 9110)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(tags & {etag, "*"})
