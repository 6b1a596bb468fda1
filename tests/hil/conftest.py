"""Fixtures of tests on a board, and the budgets at the end. Without ``--lg-env``, what needs a board is skipped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hil.lab.budgets import Budgets

BUDGETS = pytest.StashKey[dict[str, "Budgets"]]()
HOW = "pytest -m hil --lg-env tests/hil/environments/qemu-arm64.yaml (make hil); docs/hil.md"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BUDGETS] = {}


def environment_of(config: pytest.Config) -> str:
    """Return the environment's file; the test is skipped where none is given, with the flag that would run it."""
    try:
        import labgrid  # noqa: F401
    except ImportError:
        pytest.skip(f"labgrid is not installed: pip install -e '.[hil]', then {HOW}")
    given: Any = config.getoption("lg_env", None) or os.environ.get("LG_ENV")
    if not given:
        pytest.skip(f"needs a board: {HOW}")
    return str(given)


@pytest.fixture(scope="session")
def lg_environment(request: pytest.FixtureRequest) -> str:
    """The environment's file."""
    return environment_of(request.config)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for budgets in config.stash[BUDGETS].values():
        terminalreporter.section(f"budgets of {budgets.environment}")
        for line in budgets.lines():
            terminalreporter.write_line(line)
