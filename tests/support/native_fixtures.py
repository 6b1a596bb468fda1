"""Fixtures that build the core for apps once per test run: a plain build, and one with sanitizers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_once import made_once, shared_root
from native_library import Core, build


@pytest.fixture(scope="session")
def core_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its command, built once per test run."""
    return made_once(shared_root(tmp_path_factory) / "core", lambda folder: build(folder, "-DBUILD_SHARED_LIBS=ON"))


@pytest.fixture(scope="session")
def core(core_build: Path) -> Core:
    return Core(core_build / "libcovey.so")


@pytest.fixture(scope="session")
def command(core_build: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        result = subprocess.run(
            [str(core_build / "covey-core"), *map(str, arguments), "--format", "json"],
            check=False,
            capture_output=True,
            text=True,
        )
        return result.returncode, json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def mutate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-DCOVEY_SANITIZE=ON", "-DCOVEY_TESTS=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    return (
        made_once(
            shared_root(tmp_path_factory) / "sanitized", lambda folder: build(folder, *flags, target="covey-mutate")
        )
        / "covey-mutate"
    )
