"""Fixtures that many tests share: tiny bundles, each exported once per test run, whichever worker comes first.

Hypothesis draws the same examples in every run, so that two runs of one commit say the same; ``make explore`` draws new
ones.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from edge_runtime.bundle.folder import Bundle, open_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["blob_choice", "file_order", "ledger_choice", "native_fixtures", "postgres_fixtures"]
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Return a function that exports a tiny model, once per set of options: see tiny_exports.TinyExport.

    Where COVEY_TINY_BUNDLES names a folder, bundles come from there and none is exported: an environment without the
    exporter is tested (.ci/versions.py).
    """
    if kept := os.environ.get("COVEY_TINY_BUNDLES"):
        from kept_bundles import kept_name

        return lambda kind, **options: open_bundle(Path(kept) / "bundles" / kept_name(kind, options))
    from kept_bundles import kept_name
    from made_once import alone, made_once, shared_root
    from tiny_exports import TinyExport

    root = shared_root(tmp_path_factory)

    def export(kind: str, **options: Any) -> Bundle:
        def write(out: Path) -> None:
            with alone(root / "models" / f"{kind}.lock"):
                wanted.write(root / "models", out)

        wanted = TinyExport(kind, **options)
        return open_bundle(made_once(root / "bundles" / kept_name(kind, asdict(wanted)), write))

    return export


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """A tiny BERT with Covey's own head, with splits 1 and 2 of 3 layers. Tests must not change it: see bundle_copy."""
    return tiny_export("bert")


@pytest.fixture
def bundle_copy(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle that a test may change."""
    import shutil

    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")
