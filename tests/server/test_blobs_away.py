"""A bucket that does not answer holds nobody up: devices are told to come again, and each blob is fetched once."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3 import KEY, REGION, S3, SECRET

from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.upload import upload
from edge_runtime.protocol.plans import BlobRef
from server.storage.aws_settings import AwsSettings
from server.storage.bucket import Bucket
from server.storage.bucket_blobs import BucketBlobs
from server.web.blob_waits import BlobWaits
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

DATA = b"a delta" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def away(s3: S3) -> Iterator[S3]:
    """A server that a test stops, and that runs again after it."""
    yield s3
    s3.stop()
    s3.start()


def store_of(s3: S3, address: str, root: Path, port: int | None = None) -> BucketBlobs:
    settings = s3.settings() if port is None else AwsSettings(REGION, f"http://127.0.0.1:{port}", KEY, SECRET)
    return BucketBlobs(Bucket(address, settings), "blobs", root)


def ask(port: int, path: str = f"/blobs/{SHA}", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    with connection.getresponse() as answer:
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_ten_that_ask_for_one_blob_cost_one_download(s3: S3, tmp_path: Path) -> None:
    address = s3.new_bucket()
    store_of(s3, address, tmp_path / "first").add(DATA)
    store = store_of(s3, address, tmp_path / "second")
    fetched: list[str] = []
    plain, may_go = store._bucket.fetch, threading.Event()

    def counted(key: str, target: Path, limit_s: float) -> str | None:
        fetched.append(key)
        assert may_go.wait(60)
        return plain(key, target, limit_s)

    store._bucket.fetch = counted  # type: ignore[method-assign]
    with serve_http(make_app(store), "127.0.0.1", 0) as port, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, port) for _ in range(10)]
        own = [pool.submit(store.path, SHA) for _ in range(2)]
        may_go.set()
        assert {(one.result()[0], one.result()[2]) for one in asked} == {(200, DATA)}
        assert {path.result() for path in own} == {store.here(SHA)}
    assert fetched == [f"blobs/{SHA}"]


def test_a_bucket_that_is_away_is_said_at_once_and_nothing_else_waits(
    away: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = away.new_bucket()
    store = store_of(away, address, tmp_path)
    here = store.add(b"here").sha256
    away.stop()
    with serve_http(make_app(store), "127.0.0.1", 0) as port, ThreadPoolExecutor(60) as pool:
        names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100)]
        asked = [pool.submit(ask, port, f"/blobs/{name}") for name in names]
        assert ask(port, f"/blobs/{here}")[0] == 200
        assert ask(port, "/healthz")[0] == 200
        for one in asked:
            status, headers, body = one.result()
            assert (status, headers["retry-after"], headers["cache-control"]) == (503, "5", "no-store")
            assert b"ask again later" in body
    assert "told to come again" in caplog.text


def test_a_bucket_that_hangs_is_not_waited_for(s3: S3, tmp_path: Path) -> None:
    """It takes connections and says nothing: a request's own time limit is a minute."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = store_of(s3, s3.new_bucket(), tmp_path, silent.getsockname()[1])
        app = make_app(store, waits=BlobWaits(1.0))
        with serve_http(app, "127.0.0.1", 0) as port, ThreadPoolExecutor(20) as pool:
            names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20)]
            answers = [one.result()[0] for one in [pool.submit(ask, port, f"/blobs/{name}") for name in names]]
            assert set(answers) == {503}
            assert ask(port, "/healthz")[0] == 200


def test_a_device_waits_for_the_bucket_and_goes_on(away: S3, tmp_path: Path) -> None:
    address = away.new_bucket()
    store_of(away, address, tmp_path / "first").add(DATA)
    store = store_of(away, address, tmp_path / "second")
    away.stop()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:  # more than the attempts that a device has without Retry-After
            away.start()

    with serve_http(make_app(store), "127.0.0.1", 0) as port:
        assert Fetcher(f"http://127.0.0.1:{port}/blobs", pause).data(SHA, len(DATA)) == DATA
    assert pauses == [5.0] * 20


def test_an_upload_is_stored_when_the_bucket_is_back_and_sent_once(away: S3, tmp_path: Path) -> None:
    """All bytes have arrived, and cannot be stored: the device asks again, and the server stores what it has."""
    address = away.new_bucket()
    uploads = Uploads(store_of(away, address, tmp_path / "copies"))
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    path = tmp_path / "delta"
    path.write_bytes(DATA)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            away.start()

    with serve_http(make_app(uploads.blobs, uploads), "127.0.0.1", 0) as port:
        address_of_blobs = f"http://127.0.0.1:{port}/blobs"
        uploads.blobs.partial(SHA).write_bytes(DATA[:10])
        away.stop()
        upload(address_of_blobs, SHA, path, pause)
    assert pauses == [5.0, 5.0]
    assert away.objects(address) == {f"blobs/{SHA}": DATA}
    assert uploads.blobs.here(SHA) is not None


def test_a_delta_that_another_server_has_taken_is_not_sent_again(s3: S3, tmp_path: Path) -> None:
    address, path = s3.new_bucket(), tmp_path / "delta"
    store_of(s3, address, tmp_path / "first").add(DATA)
    path.write_bytes(DATA)
    uploads = Uploads(store_of(s3, address, tmp_path / "second"))
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    with serve_http(make_app(uploads.blobs, uploads), "127.0.0.1", 0) as port:
        assert upload(f"http://127.0.0.1:{port}/blobs", SHA, path) == 0
    assert uploads.blobs.here(SHA) is not None


def test_who_asks_for_a_delta_while_the_bucket_is_away_is_not_held_up(away: S3, tmp_path: Path) -> None:
    uploads = Uploads(store_of(away, away.new_bucket(), tmp_path))
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    away.stop()
    with serve_http(make_app(uploads.blobs, uploads), "127.0.0.1", 0) as port:
        status, headers, _ = ask(port, f"/blobs/{SHA}/upload", "HEAD")
    assert (status, headers["retry-after"]) == (503, "5")
