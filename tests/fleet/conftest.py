"""Bundles with training levels and a bench for them; fleets of processes, and fleets that devices can join."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bench import Bench, bench_of
from fleets import Fleet, free_port
from joining import Site, joining_site
from layered import with_levels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    """A fleet of processes on the embedded broker; it ends with the test."""
    made = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def leveled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_levels(tiny_bundle, tmp_path_factory.mktemp("leveled") / "bundle")


@pytest.fixture
def bench(tmp_path: Path, leveled: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, leveled) as made:
        yield made


@pytest.fixture(scope="session")
def graphs(tiny_export: Any) -> Bundle:
    """A tiny BERT with training graphs of 1, 2 and 3 of its 3 layers."""
    bundle: Bundle = tiny_export("bert", levels=(1, 2, 3))
    return bundle


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fleet with an authority, of one test."""
    with joining_site(tmp_path / "state") as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fleet with an authority, for tests that leave it as it was."""
    with joining_site(tmp_path_factory.mktemp("shared") / "state") as made:
        yield made
