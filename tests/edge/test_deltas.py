"""Deltas, personal layers, uploads and memory: whole and checked, or refused with a reason."""

from __future__ import annotations

import hashlib
import http.client
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered import LEVELS, with_levels

from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import Personal
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.memory_need import (
    LevelNeed,
    bytes_for,
    check_level,
    level_need,
    levels_that_fit,
    rows_that_fit,
)
from edge_runtime.errors import BundleError, NetworkError, ProtocolError, StorageError, TrainingError
from edge_runtime.files.tensor_file import encode_tensors, map_tensors, read_metadata
from edge_runtime.network.upload import upload
from edge_runtime.protocol.delta import check_norms, encode_delta, most_bytes, read_delta
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.store.personal import load_personal, personal_or_none, save_personal, with_personal
from edge_runtime.store.store import Store
from server.storage.blobs import BlobStore
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def movement_of(bundle: Bundle) -> Any:
    return np.arange(1, total_size(bundle.manifest.parameters) + 1, dtype=np.float32) * np.float32(1e-6)


# -- deltas -----------------------------------------------------------------------------------------------------------


def test_a_delta_holds_its_layers_and_the_head(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    parameters, movement = tiny_bundle.manifest.parameters, movement_of(tiny_bundle)
    data = encode_delta(movement, parameters, [0, 2], 3)
    assert len(data) < most_bytes(parameters)
    path = tmp_path / "delta"
    path.write_bytes(data)
    found = read_delta(path, parameters, [0, 2], 3)
    where = layer_slices(tiny_bundle.manifest)
    assert not found[where.layers[1]].any()
    for part in (where.layers[0], where.layers[2], *where.rest):
        assert np.array_equal(found[part], movement[part])
    theirs = load_file(path)  # the safetensors library reads the same
    assert theirs.keys() == {p.name for p in parameters if p.layer != 1}
    assert all(list(theirs[p.name].shape) == p.shape for p in parameters if p.layer != 1)
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("layers", "does not hold the tensors of layers"),
        ("extra", "does not hold the tensors of layers"),
        ("shape", r"the layout has float32"),
        ("nan", "not finite"),
        ("cut", "cannot be read"),
        ("noise", "cannot be read"),
    ],
)
def test_a_wrong_delta_is_named(tiny_bundle: Bundle, tmp_path: Path, spoil: str, message: str) -> None:
    parameters, path = tiny_bundle.manifest.parameters, tmp_path / "delta"
    movement = movement_of(tiny_bundle)
    path.write_bytes(encode_delta(movement, parameters, [0], 3))
    tensors: dict[str, Any] = dict(map_tensors(path))
    first = next(iter(tensors))
    if spoil == "layers":
        path.write_bytes(encode_delta(movement, parameters, [1], 3))
    elif spoil == "extra":
        path.write_bytes(encode_tensors(tensors | {"more": np.ones(2, np.float32)}, {}))
    elif spoil == "shape":
        path.write_bytes(encode_tensors(tensors | {first: tensors[first].reshape(-1)}, {}))
    elif spoil == "nan":
        path.write_bytes(encode_tensors(tensors | {first: tensors[first] * np.float32(np.nan)}, {}))
    elif spoil == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.write_bytes(b"no delta")
    with pytest.raises(ProtocolError, match=message):
        read_delta(path, parameters, [0], 3)


def test_a_norm_that_the_steps_cannot_give_is_absurd(tiny_bundle: Bundle) -> None:
    parameters, theta = tiny_bundle.manifest.parameters, tiny_bundle.initial_adapter()
    largest = np.full(theta.size, 8 * 1e-3, np.float32)  # AdamW with a steady gradient: lr a step
    check_norms(largest, theta, parameters, steps=8, learning_rate=1e-3, weight_decay=0.0)
    with pytest.raises(ProtocolError, match=r"has norm .*8 steps at 0.001 cannot give"):
        check_norms(largest * 10, theta, parameters, steps=8, learning_rate=1e-3, weight_decay=0.0)


# -- personal layers --------------------------------------------------------------------------------------------------


def test_personal_layers_come_back_bit_for_bit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    store, slices = Store(tmp_path / "state"), layer_slices(tiny_bundle.manifest).layers
    movement = movement_of(tiny_bundle)
    seen = LayerStatistics([3, 0, 2], [1.5, 0.0, 0.25], [1.0, 0.0, 0.1], [0.1, 0.0, 0.2], [1, 0, 1])
    personal = Personal({layer: movement[slices[layer]] for layer in (0, 2)}, seen)
    sha256 = save_personal(store, tiny_bundle, "job", personal)
    found = load_personal(Store(tmp_path / "state"), sha256, tiny_bundle, "job")
    assert found.statistics == seen
    assert found.layers.keys() == {0, 2}
    assert all(np.array_equal(found.layers[layer], personal.layers[layer]) for layer in (0, 2))
    theta = tiny_bundle.initial_adapter()
    mine = with_personal(theta, found, tiny_bundle)
    assert np.array_equal(mine[slices[2]], movement[slices[2]])
    assert np.array_equal(mine[slices[1]], theta[slices[1]])
    assert not load_personal(store, sha256, tiny_bundle, "another").layers
    store.keep_only([None], None)
    assert not store.personal_file(sha256).exists()


@pytest.mark.parametrize("spoil", ["bundle", "damaged", "missing", "statistics"])
def test_personal_layers_of_no_use_are_named_and_training_begins_without(
    tiny_bundle: Bundle, tiny_export: Any, tmp_path: Path, spoil: str
) -> None:
    store = Store(tmp_path / "state")
    personal = Personal({}, LayerStatistics.of(3))
    sha256 = save_personal(store, tiny_bundle, "job", personal)
    bundle, path = tiny_bundle, store.personal_file(sha256)
    if spoil == "bundle":
        bundle = tiny_export("bert", splits=(2,))
    elif spoil == "damaged":
        path.write_bytes(path.read_bytes() + b" ")
    elif spoil == "missing":
        path.unlink()
    else:
        data = encode_tensors({}, {"bundle_sha256": bundle.sha256, "job": "job", "statistics": "{}"})
        sha256 = hashlib.sha256(data).hexdigest()
        store.personal_file(sha256).write_bytes(data)
    message = {"bundle": "belong to bundle", "statistics": "no statistics"}.get(spoil, "missing or damaged")
    with pytest.raises(BundleError, match=message):
        load_personal(store, sha256, bundle, "job")
    assert not personal_or_none(store, sha256, bundle, "job").layers


# -- uploads ----------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 9000
SHA = hashlib.sha256(DATA).hexdigest()


def no_sleep(_seconds: float) -> None:
    """Retries in tests do not wait."""


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(BlobStore(tmp_path / "deltas"))


@pytest.fixture
def url(uploads: Uploads, tmp_path: Path) -> Iterator[str]:
    with serve_http(make_app(BlobStore(tmp_path / "blobs"), uploads), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/blobs"


def patch(url: str, data: bytes, offset: int, length: int | None = None) -> int:
    """One PATCH; with a ``length`` the connection is cut after the data."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
    connection.putrequest("PATCH", f"/blobs/{SHA}/upload")
    connection.putheader("Upload-Offset", str(offset))
    connection.putheader("Content-Length", str(length or len(data)))
    connection.endheaders(data)
    if length is not None:
        connection.close()
        return 0
    return connection.getresponse().status


def test_an_upload_arrives_and_goes_on_where_it_stopped(url: str, uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    assert patch(url, DATA[:100_000], 0) == 204
    assert uploads.blobs.path(SHA) is None  # not a blob before it is whole
    again = Uploads(uploads.blobs)  # the server was started anew
    again.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    with serve_http(make_app(uploads.blobs, again), "127.0.0.1", 0) as port:
        assert upload(f"http://127.0.0.1:{port}/blobs", SHA, path, no_sleep) == len(DATA) - 100_000
    assert uploads.blobs.read(SHA) == DATA
    assert upload(url, SHA, path, no_sleep) == 0  # it is here


def test_a_request_that_breaks_off_keeps_what_came(url: str, uploads: Uploads, tmp_path: Path) -> None:
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    patch(url, DATA[:200_000], 0, length=len(DATA))
    path = tmp_path / "data"
    path.write_bytes(DATA)
    assert upload(url, SHA, path, no_sleep) <= len(DATA)
    assert uploads.blobs.read(SHA) == DATA


def test_what_no_plan_expects_is_refused(url: str, uploads: Uploads, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with pytest.raises(NetworkError, match="answered 404: no open plan expects this blob to HEAD"):
        upload(url, SHA, path, no_sleep)
    uploads.expect(BlobRef(SHA, 1000), "job", "pi")
    assert patch(url, DATA, 0) == 413  # more than was announced
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    assert patch(url, DATA[:10], 7) == 409  # another offset
    with pytest.raises(StorageError):
        upload(url, SHA, tmp_path / "nothing", no_sleep)
    uploads.forget_all("job")
    assert patch(url, DATA[:10], 0) == 404
    assert not list((tmp_path / "deltas").iterdir())


def test_another_hash_is_refused_and_dropped(url: str, uploads: Uploads, tmp_path: Path) -> None:
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    assert patch(url, DATA[:-1] + b"x", 0) == 460
    assert not list((tmp_path / "deltas").iterdir())
    assert patch(url, DATA, 0) == 204
    assert http_get(url) == 404  # deltas are not served


def http_get(url: str) -> int:
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
    connection.request("GET", f"/blobs/{SHA}")
    return connection.getresponse().status


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_level_that_does_not_fit_is_refused_with_the_bytes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    manifest = with_levels(tiny_bundle, tmp_path / "bundle").manifest
    needs = [level_need(manifest, level) for level in LEVELS]
    assert [need.level for need in needs] == LEVELS
    assert [need.bytes_needed for need in needs] == sorted({need.bytes_needed for need in needs})
    assert levels_that_fit(needs, None, 8) == LEVELS
    assert levels_that_fit(needs, bytes_for(needs[1], 8), 8) == [1, 2]
    assert levels_that_fit(needs, 0, 8) == []
    check_level(manifest, 2, 8, None)
    with pytest.raises(TrainingError, match=rf"need {bytes_for(needs[1], 8)} bytes, 5 are free"):
        check_level(manifest, 2, 8, 5)
    with pytest.raises(BundleError, match="no training graph with 7"):
        check_level(manifest, 7, 8, None)


@given(
    needed=st.integers(0, 10**9),
    a_row=st.integers(1, 10**7),
    free=st.integers(0, 10**9),
    fewest=st.integers(1, 4),
    more=st.integers(0, 60),
)
def test_as_many_rows_at_once_as_fit(needed: int, a_row: int, free: int, fewest: int, more: int) -> None:
    need, most = LevelNeed(3, needed, a_row), fewest + more
    rows = rows_that_fit(need, free, fewest, most)
    assert fewest <= rows <= most
    assert rows == fewest or bytes_for(need, rows) <= free
    assert rows == most or bytes_for(need, rows + 1) > free
    assert rows_that_fit(need, None, fewest, most) == most
