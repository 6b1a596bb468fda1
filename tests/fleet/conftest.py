"""Bundles with training levels, and a bench for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bench import Bench
from layered import with_levels

from server.storage.blobs import BlobStore
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture(scope="session")
def leveled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_levels(tiny_bundle, tmp_path_factory.mktemp("leveled") / "bundle")


@pytest.fixture
def bench(tmp_path: Path, leveled: Bundle) -> Iterator[Bench]:
    blobs, uploads = BlobStore(tmp_path / "blobs"), Uploads(BlobStore(tmp_path / "deltas"))
    with serve_http(make_app(blobs, uploads), "127.0.0.1", 0) as port:
        yield Bench(tmp_path, leveled, f"http://127.0.0.1:{port}/blobs", blobs, uploads)


@pytest.fixture(scope="session")
def graphs(tiny_export: Any) -> Bundle:
    """A tiny BERT with training graphs of 1, 2 and 3 of its 3 layers."""
    bundle: Bundle = tiny_export("bert", levels=(1, 2, 3))
    return bundle
