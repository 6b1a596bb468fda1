"""Every command in docs/hil.md is run, as far as it goes without a board; a small server is the switched socket."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml
from repository import ROOT

from tests.hil.lab.plug import switched_socket

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs/hil.md"


def commands() -> list[str]:
    """Return the commands of the page's blocks, without their remarks."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def said(words: list[str], folder: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LG_", "PYTEST_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_of_the_page_is_run(tmp_path: Path) -> None:
    pytest.importorskip("labgrid")
    board, run = tmp_path / "board.yaml", []
    with switched_socket() as (address, asked):
        for command in commands():
            words = [str(board) if word == "board.yaml" else word for word in shlex.split(command)]
            if words[:2] == ["sudo", "make"]:
                recipe = said(["make", "-n", *words[2:]])
                started = {
                    "board": r"-m tests\.hil\.board --boot\n",
                    "hil": r"-m pytest -m hil tests/hil .*--lg-env tests/hil/environments/qemu-arm64\.yaml\n",
                }
                assert re.search(started[words[2]], recipe), recipe
            elif words[0] == "pip":
                (extra,) = re.findall(r"\.\[(\w+)\]", words[-1])
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                assert any(need.startswith("labgrid") for need in project["optional-dependencies"][extra])
            elif words[0] == "cp":
                shutil.copy(ROOT / words[1], board)
                described = yaml.safe_load(board.read_text())
                main = described["targets"]["main"]
                main["resources"]["NetworkPowerPort"]["host"] = address
                main["drivers"]["WiredBoardStrategy"]["off_s"] = 0
                board.write_text(yaml.safe_dump(described))
            elif words[0] == "python":
                said([sys.executable, *words[1:]])
                assert asked[-1]["method"] == "Switch.Set"
                assert asked[-1]["params"]["on"] == (words[-1] == "on")
            else:
                assert words[0] == "pytest"
                listed = said([sys.executable, "-m", *words, "--collect-only", "-q", "-p", "no:cacheprovider"])
                assert "test_heat_and_throttling_are_read_as_the_board_has_them" in listed
                assert ("test_a_power_cut_in_mid_round_ends_on_the_same_bits" in listed) == ("hil" in words)
            run.append(words[0])
    assert {"sudo", "pip", "cp", "python", "pytest"} == set(run)
    assert len(asked) == 2
