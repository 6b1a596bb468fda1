"""Blobs over HTTP: headers by which a cache keeps them for ever, ranges, and memory that a large blob does not need."""

from __future__ import annotations

import hashlib
import http.client
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from server.storage.blobs import BlobStore
from server.web.blob_answers import CHUNK_BYTES
from server.web.http_app import make_app, serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 4000
SHA = hashlib.sha256(DATA).hexdigest()
CACHED = {"etag": f'"{SHA}"', "cache-control": "public, max-age=31536000, immutable"}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    blobs = BlobStore(tmp_path / "blobs")
    blobs.add(DATA)
    with serve_http(make_app(blobs), "127.0.0.1", 0) as port:
        yield port


def ask(port: int, method: str = "GET", name: str = SHA, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        method, f"/blobs/{name}", headers={key.replace("_", "-"): value for key, value in headers.items()}
    )
    with connection.getresponse() as answer:
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()


def test_a_blob_may_be_kept_for_ever_and_a_missing_one_not_at_all(port: int) -> None:
    status, headers, body = ask(port)
    assert (status, body) == (200, DATA)
    assert headers.items() >= CACHED.items()
    assert (headers["accept-ranges"], headers["content-length"]) == ("bytes", str(len(DATA)))
    for name in ("0" * 64, "0" * 64 + "/release", "release-keys"):
        status, headers, _ = ask(port, name=name)
        assert (status, headers["cache-control"]) == (404, "no-store")


@pytest.mark.parametrize("tags", [f'"{SHA}"', f'W/"{SHA}"', f'"other", "{SHA}"', "*"])
def test_who_has_it_already_is_told_so(port: int, tags: str) -> None:
    status, headers, body = ask(port, if_none_match=tags)
    assert (status, body) == (304, b"")
    assert headers.items() >= CACHED.items()


@pytest.mark.parametrize("tags", ['"other"', SHA, f'"{SHA}x"', ""])
def test_who_has_another_one_gets_it(port: int, tags: str) -> None:
    status, _, body = ask(port, if_none_match=tags)
    assert (status, body) == (200, DATA)


def test_head_says_what_get_would(port: int) -> None:
    status, headers, body = ask(port, "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", str(len(DATA)))
    assert headers.items() >= CACHED.items()
    assert ask(port, "HEAD", if_none_match=f'"{SHA}"')[0] == 304


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-99", 0, 100), ("bytes=1000-", 1000, len(DATA)), ("bytes=-10", len(DATA) - 10, len(DATA))],
)
def test_a_range_is_answered_alone(port: int, asked: str, start: int, stop: int) -> None:
    for condition in ({}, {"if_range": f'"{SHA}"'}):
        status, headers, body = ask(port, range=asked, **condition)
        assert (status, body) == (206, DATA[start:stop])
        assert headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert headers.items() >= CACHED.items()
    status, _, body = ask(port, range=asked, if_range='"of another blob"')
    assert (status, body) == (200, DATA)
    assert ask(port, range=f"bytes={len(DATA)}-")[0] == 416


def test_a_large_blob_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    size = 200 * CHUNK_BYTES
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(size)
    blobs = BlobStore(tmp_path / "blobs")
    blobs.add_file("a" * 64, path)
    with serve_http(make_app(blobs), "127.0.0.1", 0) as port:
        ask(port, name="b" * 64)  # what the first request imports is no blob
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        tracemalloc.start()
        try:
            connection.request("GET", f"/blobs/{'a' * 64}")
            with connection.getresponse() as answer:
                received = 0
                while part := answer.read1(1 << 16):
                    received += len(part)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert received == size
    assert peak < 12 * CHUNK_BYTES
