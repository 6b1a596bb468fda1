"""Both stores of blobs, a folder and a bucket: what is added is whole and stays, damage is seen, what goes is gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_blobs import KeptBlobs
from s3 import S3

from server.web.http_app import make_app, serve_http

DATA = b"an adapter" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


def test_what_is_added_is_there_for_the_next_server(kept_blobs: KeptBlobs) -> None:
    blob = kept_blobs.open().add(DATA)
    assert (blob.sha256, blob.size_bytes) == (SHA, len(DATA))
    after = kept_blobs.open()
    assert after.has(SHA)
    path = after.path(SHA)
    assert path is not None
    assert path.read_bytes() == DATA
    assert after.read(SHA) == DATA
    assert after.whole(SHA) is not None
    assert kept_blobs.names() == {SHA}


def test_what_was_never_added_is_not_there(kept_blobs: KeptBlobs) -> None:
    store = kept_blobs.open()
    for name in (SHA, "", "..", "../blobs", "x" * 64, SHA[:-1], SHA.upper(), f"{SHA[:-2]}/x"):
        assert not store.has(name)
        assert store.path(name) is None
        assert store.read(name) is None
        assert store.whole(name) is None


def test_a_file_becomes_a_blob(kept_blobs: KeptBlobs) -> None:
    store = kept_blobs.open()
    for path in (store.temporary(), store.partial(SHA)):
        path.write_bytes(DATA)
        assert not kept_blobs.open().has(SHA)
        assert store.adopt(path, SHA).size_bytes == len(DATA)
        assert not path.exists()
        assert kept_blobs.open().read(SHA) == DATA
        store.remove(SHA)


def test_a_blob_that_is_removed_is_gone_for_everybody(kept_blobs: KeptBlobs) -> None:
    store = kept_blobs.open()
    store.add(DATA)
    other = store.add(b"other").sha256
    store.remove(SHA)
    store.remove(SHA)
    assert not store.has(SHA)
    assert kept_blobs.open().path(SHA) is None
    assert kept_blobs.names() == {other}


def test_a_damaged_blob_is_set_aside_and_can_be_added_again(kept_blobs: KeptBlobs) -> None:
    kept_blobs.open().add(DATA)
    kept_blobs.damage(SHA)
    assert kept_blobs.open().whole(SHA) is None
    assert kept_blobs.names() == {f"{SHA}.bad"}
    store = kept_blobs.open()
    store.add(DATA)
    assert store.whole(SHA) is not None
    assert kept_blobs.names() == {SHA, f"{SHA}.bad"}


def test_adding_it_again_heals_what_is_damaged(kept_blobs: KeptBlobs) -> None:
    kept_blobs.open().add(DATA)
    kept_blobs.damage(SHA)
    kept_blobs.open().add(DATA)
    assert kept_blobs.open().whole(SHA) is not None


def test_files_of_bundles_stay_where_they_are(kept_blobs: KeptBlobs, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(DATA)
    store = kept_blobs.open()
    store.add_file(SHA, path)
    assert store.path(SHA) == path
    assert store.whole(SHA) == path
    store.remove(SHA)
    assert path.exists()
    assert kept_blobs.names() == set()


def test_devices_get_a_part_of_a_blob_that_this_server_has_never_seen(kept_blobs: KeptBlobs) -> None:
    kept_blobs.open().add(DATA)
    with serve_http(make_app(kept_blobs.open()), "127.0.0.1", 0) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/blobs/{SHA}", headers={"Range": "bytes=10-29"}, timeout=60)
    assert answer.status_code == 206
    assert answer.content == DATA[10:30]


@pytest.mark.parametrize("size", [0, 1, (8 << 20) - 1, 8 << 20, (16 << 20) + 1])
def test_every_size_comes_back(kept_blobs: KeptBlobs, size: int) -> None:
    """Large ones are sent and fetched in parts."""
    data = os.urandom(size)
    store = kept_blobs.open()
    path = store.temporary()
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    store.adopt(path, sha256)
    assert kept_blobs.open().read(sha256) == data


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "open"]), st.sampled_from([b"a", b"b"])), max_size=12))
@settings(max_examples=20, deadline=None)
def test_whatever_happens_a_store_has_what_was_added_last(
    s3: S3, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes]]
) -> None:
    for kind in ("folder", "bucket"):
        kept = KeptBlobs(tmp_path_factory.mktemp("kept"), s3 if kind == "bucket" else None)
        store, has = kept.open(), set[bytes]()
        act: dict[str, Callable[[bytes], object]] = {
            "add": lambda data: (store.add(data), has.add(data)),  # noqa: B023 called at once
            "remove": lambda data: (store.remove(hashlib.sha256(data).hexdigest()), has.discard(data)),  # noqa: B023
        }
        for step, data in steps:
            if step == "open":
                store = kept.open()
            else:
                act[step](data)
        assert kept.names() == {hashlib.sha256(data).hexdigest() for data in has}
