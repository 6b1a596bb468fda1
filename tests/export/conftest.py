"""Fixtures of the tests that read model folders."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from model_folders import MAKERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a good folder of a kind; tests must not change it: see ``copy_of``."""
    root, made = tmp_path_factory.mktemp("good"), {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = MAKERS[kind](root / kind)
        return made[kind]

    return folder


@pytest.fixture
def copy_of(good_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: shutil.copytree(good_folder(kind), tmp_path / kind, dirs_exist_ok=True)
