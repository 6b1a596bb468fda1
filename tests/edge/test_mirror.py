"""A mirror of the blobs: what it gives counts by its hash alone, and whatever it does wrong the server makes good."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from typing import TYPE_CHECKING

import pytest

from edge_runtime.errors import NetworkError
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.mirror import Mirrors
from server.storage.blobs import BlobStore
from server.web.http_app import make_app, serve_http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 2000
SHA = hashlib.sha256(DATA).hexdigest()


def no_sleep(_seconds: float) -> None:
    """Retries in tests do not wait."""


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers each GET in one way; yields its address and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):  # the device may have enough
                answer(self)

        def log_message(self, *_args: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/blobs", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sends(
    status: int, body: bytes, claims: int | None = None, kind: str = "application/octet-stream"
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) if claims is None else claims))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def never_ends(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


WRONG = {
    "other bytes": sends(200, bytes(len(DATA))),
    "an older blob": sends(200, DATA[:-256] + bytes(256)),
    "fewer bytes": sends(200, DATA[:1000]),
    "fewer and other bytes": sends(200, b"x" * 1000),
    "cut": sends(200, DATA[:1000], claims=len(DATA)),
    "nothing": sends(200, b""),
    "more bytes": sends(200, DATA + b"more"),
    "never ends": never_ends,
    "404": sends(404, b"no such object"),
    "403": sends(403, b"not a member"),
    "500": sends(500, b"out of order"),
    "a page": sends(200, b"<html>log in</html>", kind="text/html"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    blobs = BlobStore(tmp_path / "blobs")
    blobs.add(DATA)
    with serve_http(make_app(blobs), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/blobs"


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_whatever_a_mirror_does_wrong_the_blob_is_had_from_the_server(
    server: str, tmp_path: Path, wrong: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    with answering(wrong) as (url, asked):
        mirrors = Mirrors(None)
        fetcher = Fetcher(server, no_sleep, mirror=mirrors.at(url))
        fetcher.file(SHA, len(DATA), tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == DATA
        assert fetcher.data(SHA, len(DATA)) == DATA
        assert asked == [f"/blobs/{SHA}"]  # once, and then no more
        assert mirrors.at(url) is None
        assert Fetcher(server, no_sleep, mirror=Mirrors(None).at(url)).data(SHA, len(DATA)) == DATA


def test_a_mirror_alone_gives_the_blob(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/blobs"
    with answering(sends(200, DATA)) as (url, asked):
        fetcher = Fetcher(nobody, no_sleep, mirror=Mirrors(None).at(f"{url}/"))
        fetcher.file(SHA, len(DATA), tmp_path / "got")
        assert fetcher.data(SHA, len(DATA)) == DATA == (tmp_path / "got").read_bytes()
        assert len(asked) == 2
        with pytest.raises(NetworkError):
            fetcher.beside("/release-keys", 1000)  # what is not named by its hash is the server's to say
        assert len(asked) == 2


def test_a_mirror_that_is_not_there_is_left_alone_for_a_while(server: str, tmp_path: Path) -> None:
    clock, dead = Clock(), "http://127.0.0.1:9/blobs"
    mirrors = Mirrors(None, clock)
    Fetcher(server, no_sleep, mirror=mirrors.at(dead)).file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    clock.now_s = 599.0
    assert mirrors.at(dead) is None
    assert mirrors.at("http://127.0.0.1:10/blobs") is not None  # another one may be well
    clock.now_s = 601.0
    assert mirrors.at(dead) is not None


def test_what_is_no_address_is_no_mirror(caplog: pytest.LogCaptureFixture) -> None:
    assert Mirrors(None).at("ftp://mirror/blobs") is None
    assert "ftp://mirror/blobs" in caplog.text


def test_a_transfer_that_a_mirror_cut_goes_on_at_the_server(server: str, tmp_path: Path) -> None:
    with answering(sends(200, DATA[:300_000], claims=len(DATA))) as (url, _):
        fetcher = Fetcher(server, no_sleep, mirror=Mirrors(None).at(url))
        fetcher.file(SHA, len(DATA), tmp_path / "got")
    assert fetcher.fetched_bytes == len(DATA)  # none of them twice
    assert (tmp_path / "got").read_bytes() == DATA
