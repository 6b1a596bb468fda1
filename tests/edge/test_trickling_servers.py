"""A server or a mirror that trickles bytes is left, as one that says nothing is; a slow link is not."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import NetworkError
from edge_runtime.network.fetch import Fetcher, try_again
from edge_runtime.network.https import Https
from edge_runtime.network.mirror import Mirrors
from edge_runtime.network.pace import LeastSpeed, PacedReader, TooSlowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Trickles = Callable[["Clock"], Callable[[http.server.BaseHTTPRequestHandler], None]]

DATA = bytes(range(256)) * 400
SHA = hashlib.sha256(DATA).hexdigest()


class Clock:
    """Time that a server lets pass."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the device may have enough
                answer(self)

        do_HEAD = do_GET  # noqa: N815 as http.server wants it

        def log_message(self, *_args: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/blobs"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def all_at_once(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(DATA)


def in_headers(clock: Clock) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Headers that never end; between two bytes of them nine seconds pass."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            clock.now_s += 9.0
            handler.wfile.write(b"x")

    return answer


def in_the_body(clock: Clock) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        for place in range(len(DATA)):
            clock.now_s += 9.0
            handler.wfile.write(DATA[place : place + 1])

    return answer


@pytest.mark.parametrize("trickles", [in_headers, in_the_body])
def test_a_mirror_that_trickles_is_left_for_the_server(
    trickles: Trickles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with answering(trickles(clock)) as mirror, answering(all_at_once) as server:
        mirrors = Mirrors(None, clock)
        fetcher = Fetcher(server, lambda _seconds: None, mirror=mirrors.at(mirror))
        fetcher.file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    assert "it trickles: less than 81920 bytes in 20 s" in caplog.text


@pytest.mark.parametrize("trickles", [in_headers, in_the_body])
def test_a_server_that_trickles_is_given_up(trickles: Trickles) -> None:
    clock, pauses = Clock(), list[float]()
    with answering(trickles(clock)) as url:
        fetcher = Fetcher(url, pauses.append, clock)
        with pytest.raises(NetworkError, match="trickles: less than 8192 bytes in 60 s"):
            fetcher.data(SHA, len(DATA))
    assert len(pauses) == 5


LEAST = LeastSpeed(1000, 60.0)


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(0.0, 30.0)), min_size=1, max_size=60))
def test_what_is_fast_enough_in_every_window_passes_whole(parts: list[tuple[int, float]]) -> None:
    """Each part comes after a pause that is shorter than a window; at least 1,000 bytes with each second one."""
    clock = Clock()
    sent = [(n if index % 2 else max(n, 1000), pause_s) for index, (n, pause_s) in enumerate(parts)]

    class Source(io.RawIOBase):
        def __init__(self) -> None:
            self._left = list(sent)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if not self._left:
                return 0
            n, pause_s = self._left.pop(0)
            clock.now_s += pause_s
            buffer[:n] = bytes(n)
            return n

    reader = PacedReader(Source(), LEAST, clock)
    received = 0
    while n := reader.readinto(memoryview(bytearray(4096))):
        received += n
    assert received == sum(n for n, _ in sent)


@given(st.integers(1, 10), st.floats(1.0, 29.0))
def test_what_is_too_slow_is_broken_off_within_two_windows(n: int, pause_s: float) -> None:
    clock = Clock()

    class Drops(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            clock.now_s += pause_s
            buffer[:n] = bytes(n)
            return n

    reader = PacedReader(Drops(), LEAST, clock)
    with pytest.raises(TooSlowError):
        while reader.readinto(memoryview(bytearray(4096))):
            pass
    assert clock.now_s <= 2 * LEAST.window_s + 2 * pause_s


# -- a server that says when to come again -----------------------------------------------------------------------------


def busy(seconds: str | None) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(503)
        if seconds is not None:
            handler.send_header("Retry-After", seconds)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize(
    ("said", "pauses"),
    [
        ("7", [7.0] * 43 + [0.5, 1.0, 2.0, 4.0, 8.0]),  # five minutes, and then as without it
        ("0", [1.0] * 300 + [0.5, 1.0, 2.0, 4.0, 8.0]),
        ("99999999", [300.0, 0.5, 1.0, 2.0, 4.0, 8.0]),
        ("Sun, 06 Nov 1994 08:49:37 GMT", [0.5, 1.0, 2.0, 4.0, 8.0]),
        ("-5", [0.5, 1.0, 2.0, 4.0, 8.0]),
        (None, [0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_a_server_is_asked_again_when_it_says_and_not_for_ever(said: str | None, pauses: list[float]) -> None:
    waited: list[float] = []
    with answering(busy(said)) as url:
        https = Https(url, None)

        def attempt() -> None:
            https.open("GET", f"/{SHA}").close()

        with pytest.raises(NetworkError, match="503"):
            try_again(attempt, waited.append, "fetch it")
    assert waited == pauses
