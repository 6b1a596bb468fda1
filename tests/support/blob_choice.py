"""Fixtures: a local S3 server, and blobs in a folder and in a bucket of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kept_blobs import KeptBlobs
    from s3 import S3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A running S3 server, in which each test has a bucket of its own."""
    from s3 import running_s3

    with running_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def kept_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> KeptBlobs:
    """Blobs in a folder of their own, and in a bucket of their own."""
    from kept_blobs import KeptBlobs

    return KeptBlobs(tmp_path, request.getfixturevalue("s3") if request.param == "bucket" else None)
