"""Fetching over real HTTP: resumable, checked, whole or not there; a full disk loses nothing."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.errors import BundleError, NetworkError, StorageError
from edge_runtime.files.atomic import write_atomically
from edge_runtime.network.fetch import Fetcher, blob_base
from edge_runtime.store.bundles import fetch_bundle
from edge_runtime.store.journal import Journal
from edge_runtime.store.store import Store
from server.storage.blobs import BlobStore
from server.web.http_app import make_app, serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

DATA = bytes(range(256)) * 5000
SHA = hashlib.sha256(DATA).hexdigest()


def no_sleep(_seconds: float) -> None:
    """Retries in tests do not wait."""


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def url(blobs: BlobStore) -> Iterator[str]:
    with serve_http(make_app(blobs), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/blobs"


@contextlib.contextmanager
def flaky_server(data: bytes, cut_at: int, times: int) -> Iterator[tuple[str, list[str | None]]]:
    """A server that breaks the connection after ``cut_at`` bytes, the first ``times`` times; notes Range headers."""
    ranges: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ranges.append(self.headers.get("Range"))
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            piece = data[start : start + cut_at] if len(ranges) <= times else data[start:]
            self.wfile.write(piece)

        def log_message(self, *_args: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/blobs", ranges
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_blob_arrives(blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.add(DATA)
    fetcher = Fetcher(url, no_sleep)
    fetcher.file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA == fetcher.data(SHA, len(DATA))
    assert fetcher.fetched_bytes == 2 * len(DATA)


def test_a_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with flaky_server(DATA, 400_000, times=3) as (url, ranges):
        fetcher = Fetcher(url, no_sleep)
        fetcher.file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    assert ranges == [None, "bytes=400000-", "bytes=800000-", "bytes=1200000-"]
    assert fetcher.fetched_bytes == len(DATA)


def test_a_transfer_goes_on_after_a_restart(blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.add(DATA)
    (tmp_path / "got.part").write_bytes(DATA[:1_000_000])
    fetcher = Fetcher(url, no_sleep)
    fetcher.file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    assert fetcher.fetched_bytes == len(DATA) - 1_000_000


def test_a_damaged_part_is_thrown_away(blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.add(DATA)
    (tmp_path / "got.part").write_bytes(b"x" * 1000)
    Fetcher(url, no_sleep).file(SHA, len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA


def test_wrong_bytes_never_appear(tmp_path: Path) -> None:
    with flaky_server(b"y" * len(DATA), 10**9, times=0) as (url, _):
        with pytest.raises(NetworkError, match="another hash"):
            Fetcher(url, no_sleep).file(SHA, len(DATA), tmp_path / "got")
        with pytest.raises(NetworkError, match="another hash"):
            Fetcher(url, no_sleep).data(SHA, len(DATA))
        with pytest.raises(NetworkError, match="larger than"):
            Fetcher(url, no_sleep).data(SHA, 10)
    assert not (tmp_path / "got").exists()


def test_unknown_blobs_and_dead_servers_are_errors(url: str, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="answered 404"):
        Fetcher(url, no_sleep).data("0" * 64, 10)
    with pytest.raises(NetworkError, match="cannot fetch"):
        Fetcher("http://127.0.0.1:9/blobs", no_sleep).file(SHA, 5, tmp_path / "got")


@pytest.mark.parametrize("name", ["../../etc/passwd", "%2e%2e%2fledger.sqlite", "0" * 63, "." * 64])
def test_only_blobs_are_served(url: str, name: str) -> None:
    with pytest.raises(NetworkError, match="answered 404"):
        Fetcher(url, no_sleep).data(name, 10**6)


def test_addresses() -> None:
    assert blob_base("http://:8080/blobs", "broker.lan", None) == "http://broker.lan:8080/blobs"
    assert blob_base("https://server/blobs", "broker.lan", None) == "https://server/blobs"
    assert blob_base("http://:8080/blobs", "broker.lan", "http://me:1/") == "http://me:1/blobs"
    with pytest.raises(NetworkError, match="not an http address"):
        blob_base("file:///etc", "broker.lan", None)


def test_a_bundle_arrives_once_and_is_checked(tiny_bundle: Bundle, blobs: BlobStore, url: str, tmp_path: Path) -> None:
    blobs.add_bundle(tiny_bundle)
    checked: list[str] = []
    fetcher = Fetcher(url, no_sleep)
    store = Store(tmp_path / "state")
    bundle = fetch_bundle(fetcher, tiny_bundle.sha256, store.bundles, lambda b: checked.append(b.sha256))
    assert bundle.sha256 == tiny_bundle.sha256 == checked[0]
    assert bundle.path == store.bundles / tiny_bundle.sha256
    assert not list(store.bundles.glob("*.partial"))


def test_an_interrupted_bundle_goes_on_and_a_failed_check_keeps_it_away(
    tiny_bundle: Bundle, blobs: BlobStore, url: str, tmp_path: Path
) -> None:
    blobs.add_bundle(tiny_bundle)
    bundles = Store(tmp_path / "state").bundles
    partial = bundles / f"{tiny_bundle.sha256}.partial"
    big = max(tiny_bundle.manifest.files, key=lambda entry: entry.size_bytes)
    (partial / big.path).parent.mkdir(parents=True)
    shutil.copyfile(tiny_bundle.file(big.path), partial / big.path)
    damaged = next(entry for entry in tiny_bundle.manifest.files if entry != big)
    (partial / damaged.path).parent.mkdir(parents=True, exist_ok=True)
    (partial / damaged.path).write_bytes(b"x" * damaged.size_bytes)

    def refuse(_bundle: Bundle) -> None:
        raise BundleError("golden vectors differ")

    fetcher = Fetcher(url, no_sleep)
    with pytest.raises(BundleError, match="golden"):
        fetch_bundle(fetcher, tiny_bundle.sha256, bundles, refuse)
    total = sum(entry.size_bytes for entry in tiny_bundle.manifest.files)
    manifest_bytes = tiny_bundle.file("manifest.json").stat().st_size
    assert fetcher.fetched_bytes == total - big.size_bytes + manifest_bytes
    assert not (bundles / tiny_bundle.sha256).exists()
    bundle = fetch_bundle(fetcher, tiny_bundle.sha256, bundles, lambda _bundle: None)
    assert open_bundle(bundle.path).sha256 == tiny_bundle.sha256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(
    small_disk: Path, blobs: BlobStore, url: str, tiny_bundle: Bundle
) -> None:
    blobs.add(DATA)
    store = Store(small_disk)
    store.write_journal(Journal(job="kept"))
    with pytest.raises(StorageError, match="disk full"):
        Fetcher(url, no_sleep).file(SHA, len(DATA), small_disk / "got")
    with pytest.raises(StorageError, match="disk full"):
        store.write_journal(Journal(job="x" * 300_000))
    assert store.journal() == Journal(job="kept")
    assert not (small_disk / "got").exists()
    blobs.add_bundle(tiny_bundle)
    with pytest.raises(StorageError, match="the bundle needs"):
        fetch_bundle(Fetcher(url, no_sleep), tiny_bundle.sha256, store.bundles, lambda _bundle: None)


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "journal.json").write_text('{"job": 5}')
    with pytest.raises(StorageError, match="journal"):
        store.journal()


def test_files_are_old_or_new(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "a" / "below", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_folders_in_the_way_of_a_file_are_set_aside(tmp_path: Path) -> None:
    for name in ("a", "a.tmp"):
        (tmp_path / name / "what is in it").mkdir(parents=True)
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a.bad" / "what is in it").is_dir()
    assert (tmp_path / "a.tmp.bad" / "what is in it").is_dir()


def test_only_the_newest_adapters_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index in range(4):
        new = tmp_path / "new"
        new.write_bytes(bytes([index]))
        os.utime(new, ns=(index, index))
        store.keep_adapter(new, f"{index:064}")
    kept = sorted(path.name for path in (tmp_path / "adapters").iterdir())
    assert kept == [f"{2:064}.bin", f"{3:064}.bin"]
