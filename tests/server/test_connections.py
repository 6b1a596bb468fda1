"""Half-open, stalled and idle HTTP connections end, and cannot keep others out: rules, and real sockets."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import logging
import os
import select
import socket
from collections.abc import Hashable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.protocol.plans import BlobRef
from server.storage.blobs import BlobStore
from server.web.connections import Connections, Limits, Phase, most_connections
from server.web.http_app import bind, make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Limits(header_s=0.3, body_s=0.3, keep_alive_s=0.3, most=50)
PATIENT = 30.0


class Fake:
    """A connection of the rules' tests: its phase and progress are what the test says."""

    def __init__(self, phase: Phase = "header", progress: Hashable = 0) -> None:
        self._phase, self._progress, self.is_ended = phase, progress, False

    def phase(self) -> Phase:
        return self._phase

    def progress(self) -> Hashable:
        return self._progress

    def abort(self) -> None:
        self.is_ended = True

    def become(self, phase: Phase, progress: Hashable = 0) -> None:
        self._phase, self._progress = phase, progress


@pytest.mark.parametrize(("phase", "seconds"), [("header", 20), ("idle", 15), ("body", 60), ("sending", 60)])
def test_each_phase_has_its_time(phase: Phase, seconds: float) -> None:
    watch, fake = Connections(Limits()), Fake(phase)
    watch.enter(fake, 100.0)
    watch.sweep(100.0 + seconds - 0.5)
    assert not fake.is_ended
    watch.sweep(100.0 + seconds)
    assert (fake.is_ended, len(watch)) == (True, 0)


def test_a_body_that_moves_and_a_server_at_work_have_all_the_time_they_need() -> None:
    watch, moving, at_work = Connections(Limits()), Fake("body"), Fake("at work")
    for fake in (moving, at_work):
        watch.enter(fake, 0.0)
    for minute in range(1, 100):
        moving.become("body", minute)
        watch.sweep(59.0 * minute)
    assert not moving.is_ended
    assert not at_work.is_ended
    watch.sweep(59.0 * 99 + 60)
    assert moving.is_ended


@given(st.lists(st.sampled_from(["header", "idle", "body", "at work"]), max_size=30), st.integers(1, 10))
def test_there_are_never_more_and_the_longest_idle_go_first(phases: list[Phase], most: int) -> None:
    watch = Connections(Limits(most=most))
    fakes = []
    for at, phase in enumerate(phases):
        fakes.append(Fake(phase))
        idle = [fake for fake in fakes[:-1] if not fake.is_ended and fake.phase() in ("idle", "header")]
        was_full = len(watch) == most
        watch.enter(fakes[-1], float(at) / 100)
        assert len(watch) == sum(not fake.is_ended for fake in fakes) <= most
        if was_full:
            assert (idle[0] if idle else fakes[-1]).is_ended


def test_the_most_follows_from_the_limit_of_open_files() -> None:
    assert [most_connections(files) for files in (-1, 64, 256, 1024, 10**6)] == [1000, 8, 64, 448, 1000]


# -- real sockets ---------------------------------------------------------------------------------------------------


class Site:
    """A server with a small blob, a large one and an upload that it expects."""

    def __init__(self, root: Path) -> None:
        self.blobs, self.uploads = BlobStore(root / "blobs"), Uploads(BlobStore(root / "deltas"))
        self.small = self.blobs.add(b"x" * 100)
        self.large = self.blobs.add(os.urandom(16 * 1024 * 1024))
        self.delta = os.urandom(3000)
        self.expected = BlobRef(hashlib.sha256(self.delta).hexdigest(), len(self.delta))
        self.uploads.expect(self.expected, "job", "pi")
        self.port = 0

    @contextlib.contextmanager
    def served(self, limits: Limits) -> Iterator[Site]:
        with serve_http(make_app(self.blobs, self.uploads), "127.0.0.1", 0, limits) as self.port:
            yield self

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENT)

    def healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENT)
        connection.request("GET", "/healthz")
        return bool(json.loads(connection.getresponse().read())["status"] == "ok")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path).served(QUICK) as made:
        yield made


def rest(connection: socket.socket) -> bytes:
    """Read until the server has ended the connection."""
    came = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            came += piece
    return came


def patch(site: Site, offset: int, body: bytes, length: int) -> bytes:
    head = f"PATCH /blobs/{site.expected.sha256}/upload HTTP/1.1\r\nHost: x\r\nUpload-Offset: {offset}\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 999]
)
def test_a_header_that_never_ends(site: Site, sent: bytes) -> None:
    with site.open() as connection:
        connection.sendall(sent)
        assert rest(connection) == b""
        assert site.healthy()


def test_bytes_that_drip_do_not_buy_time(site: Site) -> None:
    with site.open() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        connection.settimeout(0.05)

        def is_open() -> bool:
            try:
                connection.sendall(b"y")
                return connection.recv(1) != b""
            except TimeoutError:
                return True
            except ConnectionError:
                return False

        assert any(not is_open() for _ in itertools.count())


def test_a_second_header_that_never_ends_after_a_request(site: Site) -> None:
    """uvicorn forgets its own timer with the first byte."""
    with site.open() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTT")
        rest(connection)
        assert site.healthy()


def test_an_idle_connection(site: Site) -> None:
    with site.open() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_stops_and_the_upload_goes_on_where_it_stopped(site: Site) -> None:
    with site.open() as connection:
        connection.sendall(patch(site, 0, site.delta[:1000], 3000))
        rest(connection)
    with site.open() as connection:
        connection.sendall(f"HEAD /blobs/{site.expected.sha256}/upload HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"upload-offset: 1000" in connection.recv(65536).lower()
    with site.open() as connection:
        connection.sendall(patch(site, 1000, site.delta[1000:], 2000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 204")
    assert site.uploads.blobs.path(site.expected.sha256) is not None


def test_a_reader_that_does_not_read(site: Site) -> None:
    with site.open() as connection:
        connection.sendall(f"GET /blobs/{site.large.sha256} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        poll = select.poll()
        poll.register(connection, 0)  # tells errors and hang-ups only: nothing is read
        assert poll.poll(1000 * PATIENT)
        assert len(rest(connection)) < site.large.size_bytes
        assert site.healthy()


def test_a_reader_that_reads_gets_everything(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENT)
    connection.request("GET", f"/blobs/{site.large.sha256}")
    assert hashlib.sha256(connection.getresponse().read()).hexdigest() == site.large.sha256


@pytest.mark.parametrize("opening", [b"", b"GET /heal"])
def test_half_open_connections_do_not_keep_others_out(tmp_path: Path, opening: bytes) -> None:
    """Before, 600 of them stayed open; with these limits none has to end by itself."""
    with Site(tmp_path).served(Limits(header_s=600, body_s=600, keep_alive_s=600, most=20)) as site:
        openings = [site.open() for _ in range(100)]
        for connection in openings:
            with contextlib.suppress(ConnectionError):
                connection.sendall(opening)
        assert site.healthy()
        ended = [_is_ended(connection) for connection in openings]
        assert sum(ended) >= 80
        assert all(ended[:70])
        for connection in openings:
            connection.close()


def _is_ended(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_serving_leaves_the_handlers_of_others_open(tmp_path: Path) -> None:
    """absl's handler, for one, closes what was standard error when absl was imported."""
    closed: list[bool] = []

    class Handler(logging.NullHandler):
        def close(self) -> None:
            closed.append(True)
            super().close()

    handler = Handler()
    with Site(tmp_path).served(QUICK) as site:
        assert site.healthy()
    assert closed == []
    handler.close()
    assert closed == [True]


def test_small_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY where the socket names its protocol; without, an answer in two pieces takes 40 ms."""
    listener = bind("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()) as _client, listener.accept()[0] as accepted:
        assert accepted.proto == socket.IPPROTO_TCP
