"""The environments of tests on boards, their budgets, and what is said where there is no board: without any board."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from repository import ROOT

from tests.hil.lab.board_under_test import PATIENT
from tests.hil.lab.budgets import Budgets, OverBudgetError, budgets_of
from tests.hil.test_board import BUDGETS, ENVIRONMENTS

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "tests/hil/environments"
REAL = [name for name in ENVIRONMENTS if name != "qemu-arm64"]
_PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
_NO_LABGRID = f"import sys; sys.modules['labgrid'] = None; {_PYTEST}"


def pytest_in(folder: Path, *arguments: str, before: str = _NO_LABGRID) -> str:
    """Run pytest on the board's tests in a process of its own, without plugins but one; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LG_", "PYTEST_"))}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", before, "-p", "pytest_timeout", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_without_a_board_tests_are_skipped_with_the_flag_that_runs_them(tmp_path: Path) -> None:
    said = pytest_in(tmp_path, "-m", "hil", "tests/hil/test_board.py", "-q")
    assert re.search(r"\b10 skipped", said), said
    assert "labgrid is not installed: pip install -e '.[hil]'" in said
    assert "--lg-env tests/hil/environments/qemu-arm64.yaml" in said
    pytest.importorskip("labgrid")
    said = pytest_in(tmp_path, "-m", "hil", "tests/hil/test_board.py", "-q", before=_PYTEST)
    assert re.search(r"\b10 skipped", said), said
    assert "needs a board: pytest -m hil --lg-env tests/hil/environments/qemu-arm64.yaml" in said


def test_every_environment_has_its_file_and_a_column_of_budgets() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(ENVIRONMENTS)
    assert all(len(row) == len(ENVIRONMENTS) for row in BUDGETS.values())
    for name in REAL:
        assert budgets_of(BUDGETS, ENVIRONMENTS, name).expected.keys() == BUDGETS.keys()
    assert budgets_of(BUDGETS, ENVIRONMENTS, "my-board").expected == {}


@pytest.mark.parametrize("name", REAL)
def test_real_boards_have_power_a_shell_and_a_serial_line(name: str) -> None:
    described: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    main = described["targets"]["main"]
    assert {"NetworkService", "NetworkPowerPort", "USBSerialPort"} <= main["resources"].keys()
    assert {"NetworkPowerDriver", "SSHDriver", "SerialDriver", "WiredBoardStrategy"} <= main["drivers"].keys()
    assert ("USBSDMuxDevice" in main["resources"]) == ("USBSDMuxDriver" in main["drivers"])
    steps = int(described["options"]["covey_steps"])
    assert 1 <= steps <= 4096
    step_s = budgets_of(BUDGETS, ENVIRONMENTS, name).expected["step of the tiny bundle, s"]
    assert 5.0 <= steps * step_s <= PATIENT["deadline_s"] / 2  # long enough to be interrupted, and done in time


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_labgrid_makes_every_environment(name: str) -> None:
    pytest.importorskip("labgrid")
    from labgrid import Environment
    from labgrid.resource import NetworkPowerPort

    environment = Environment(str(FOLDER / f"{name}.yaml"))
    target = environment.get_target("main")
    strategy = target.get_driver("Strategy", activate=False)
    assert strategy.is_emulated == (name == "qemu-arm64")
    if not strategy.is_emulated:
        port = target.get_resource(NetworkPowerPort, wait_avail=False)
        from importlib import import_module

        assert import_module(f"labgrid.driver.power.{port.model}").power_set


def test_budgets_are_printed_and_more_is_an_error() -> None:
    budgets = Budgets("pi", {"boot, s": 45.0, "step, s": 0.05})
    budgets.measure("boot, s", 30.0)
    budgets.measure("boot, s", 20.0)  # the worst counts
    budgets.measure("rows", 24)  # no budget
    with pytest.raises(OverBudgetError, match=r"step, s: 0.06, and the budget of pi is 0.05"):
        budgets.measure("step, s", 0.06)
    lines = budgets.lines()
    assert [line.split() for line in lines[:-1]] == [
        ["figure", "budget", "measured"],
        ["boot,", "s", "45", "30"],
        ["step,", "s", "0.05", "0.06", "over"],
        ["rows", "-", "24"],
    ]
    assert json.loads(lines[-1])["measured"] == {"boot, s": 30.0, "step, s": 0.06, "rows": 24}
