"""The rules of the house can fail: each check of .ci/house.py and each import contract meets what it forbids."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
SIDES = ("edge_runtime", "server", "export")
# For each contract of pyproject.toml: a file, and a line in it that the contract forbids.
FORBIDDEN = {
    "The device side imports no exporter, no server and nothing heavy": ("edge_runtime/values.py", "import torch"),
    "The server coordinates; it never imports the exporter or torch": ("server/events.py", "import transformers"),
    "The exporter never imports the server": ("export/quiet.py", "import server.events"),
    "edge_runtime: every room stands on the ones below it": (
        "edge_runtime/bundle/layout.py",
        "import edge_runtime.protocol.topics",
    ),
    "server: every room stands on the ones below it": ("server/job/job.py", "import server.storage.blobs"),
    "export: every room stands on the ones below it": ("export/model/names.py", "import export.trace.lift"),
    "The server shares contracts and the replay with devices, not their insides": (
        "server/fleet/cohort.py",
        "import edge_runtime.device.board",
    ),
    "The exporter knows bundles and engines, nothing of rounds": (
        "export/graphs/xnnpack.py",
        "import edge_runtime.protocol.topics",
    ),
    "The bandit is pure": ("server/bandit/arms.py", "import time"),
    "SQL lives in storage": ("server/views/explain.py", "import sqlite3"),
    "No circle of imports, neither of rooms nor of files, also under TYPE_CHECKING": (
        "edge_runtime/seeds.py",
        "import edge_runtime.forward_only.directions",
    ),
    "Nothing that ships imports the benchmarks": ("server/events.py", "import benchmarks.harness.figures"),
    "benchmarks: every room stands on the ones below it": (
        "benchmarks/harness/figures.py",
        "import benchmarks.speed.step",
    ),
}


def copy_of_sources(to: Path) -> Path:
    """Copy what the checks read, without what was built."""
    to.mkdir()
    for side in (*SIDES, "benchmarks"):
        shutil.copytree(ROOT / side, to / side, ignore=shutil.ignore_patterns("__pycache__", "*.so", "results"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def contracts(root: Path) -> dict[str, str]:
    """Return what import-linter says of each contract: KEPT or BROKEN."""
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "300", "NO_COLOR": "1"}
    command = [str(LINT_IMPORTS), "--no-cache"]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    return dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", result.stdout, re.MULTILINE))


def test_each_contract_meets_an_import_that_it_forbids(tmp_path: Path) -> None:
    clean = contracts(ROOT)
    assert set(clean.values()) == {"KEPT"}
    assert set(clean) == set(FORBIDDEN)
    root = copy_of_sources(tmp_path / "copy")
    for file, line in FORBIDDEN.values():
        with (root / file).open("a") as source:
            source.write(f"\nif False:\n    {line}\n")
    assert contracts(root) == dict.fromkeys(FORBIDDEN, "BROKEN")


def faults(root: Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "house.py"), "--root", str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == (0 if "the house is in order" in result.stdout else 1), result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the tree in which a test may break a rule."""
    root = copy_of_sources(tmp_path / "house")
    for folder in ("tests", "docs", "device_profiles", ".ci"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_the_house_is_in_order(house: Path) -> None:
    assert faults(house) == ["the house is in order"]


LONG = "def long() -> int:\n" + "    _ = 0\n" * 60 + "    return 1\n"
WIDE = "def wide(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, i: int) -> None:{}\n    print(a)\n"


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("edge_runtime/seeds.py", "\n" * 400, "lines, at most 400"),
        ("edge_runtime/seeds.py", LONG, "long has 62 lines, at most 60"),
        ("edge_runtime/seeds.py", WIDE.format(""), "wide has 9 parameters, at most 8"),
        ("edge_runtime/seeds.py", "import edge_runtime.forward_only.directions", "circle of imports: "),
        ("server/events.py", "from server.bandit.gains import _NOISE", "imports the private _NOISE"),
        ("server/web/__init__.py", "import json", "holds more than a docstring"),
        ("server/web/blobs.py", "import server.fleet.cohort", "does not list server.fleet"),
        ("edge_runtime/seeds.py", "x = 1\n", None),
        ("edge_runtime/seeds.py", LONG.replace("def", "# long: a table\ndef", 1), None),
        ("edge_runtime/seeds.py", WIDE.format("  # wide: torch's own signature"), None),
    ],
)
def test_a_broken_rule_is_named(house: Path, file: str, text: str, fault: str | None) -> None:
    path = house / file
    path.write_text((path.read_text() if path.exists() else '"""A file."""\n') + f"\n\n{text}")
    found = [line for line in faults(house) if not line.startswith("docs/files.md is stale")]
    assert [fault in line for line in found] == [True] if fault else found == ["the house is in order"]


def test_a_page_that_is_stale_a_room_that_says_nothing_and_a_tree_that_is_empty_are_named(house: Path) -> None:
    (house / "docs" / "files.md").write_text("")
    (house / "server" / "web" / "__init__.py").write_text('"""Serves things."""\n')
    shutil.rmtree(house / "benchmarks")
    shutil.rmtree(house / "device_profiles")
    found = "\n".join(faults(house))
    assert "docs/files.md is stale" in found
    assert "server/web/__init__.py does not say 'May import" in found
    assert "benchmarks: no Python file was found" in found
    assert "goes to device_profiles/, which does not exist" in found
