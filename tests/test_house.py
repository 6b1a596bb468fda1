"""The rules of the house can fail: each check of .ci/house.py and each import contract meets what it forbids."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import house
import msgspec
import protocol_page
import pytest
from repository import ROOT

from edge_runtime.protocol.messages import AnyMessage

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
    "Ray lives in ray_work": ("server/simulation/on_workers.py", "import ray"),
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


def test_the_house_is_in_order() -> None:
    assert list(house.check(ROOT)) == []


LONG = "{}def long() -> int:\n" + "    _ = 0\n" * 60 + "    return 1\n"
WIDE = "def wide(a, b, c, d, e, f, g, h, i) -> None:{}\n    print(a)\n"
ROOM = """Serves things.

May import: {}.
Must never come in: SQL.
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n" * 401, "x.py: 401 lines, at most 400"),
        ("\n" * 400, None),
        (LONG.format(""), "x.py:1: long has 62 lines, at most 60"),
        (LONG.format("# long: a table\n"), None),
        (WIDE.format(""), "x.py:1: wide has 9 parameters, at most 8"),
        (WIDE.format("  # wide: torch's own signature"), None),
    ],
)
def test_sizes_need_a_reason(text: str, fault: str | None) -> None:
    assert list(house.sizes("x.py", text)) == ([fault] if fault else [])


def tree(root: Path, **files: str) -> Path:
    """Write a small house: the files by their names, with ``__`` for a slash."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents[:-1]:
            if not (root / folder / "__init__.py").exists():
                (root / folder / "__init__.py").write_text(f'"""{ROOM.format("errors")}"""\n')
    return root


def faults(root: Path) -> list[str]:
    """Return the faults of a small house, less those that it has because it is small."""
    small = ("docs/files.md", "benchmarks: no", "server: no", "export: no", "edge_runtime: no room")
    return [fault for fault in house.check(root) if not fault.startswith(small)]


def test_a_circle_of_files_is_named_also_under_type_checking(tmp_path: Path) -> None:
    later = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edge_runtime.b import B\n"
    root = tree(tmp_path, edge_runtime__a=later, edge_runtime__b="from edge_runtime import a\nB = a\n")
    assert "circle of imports: edge_runtime.a → edge_runtime.b" in faults(root)


def test_a_private_name_of_another_file_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, edge_runtime__a="from edge_runtime.b import _B\n", edge_runtime__b="_B = 1\n")
    assert faults(root) == ["edge_runtime.a imports the private _B of edge_runtime.b"]


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (ROOM.format("errors"), None),
        (ROOM.format("errors, values"), "lists edge_runtime.values, which the room does not import"),
        (ROOM.format("values"), "does not list edge_runtime.errors, which the room imports"),
        ("Serves things.", "does not say 'May import: …' and 'Must never come in: …'"),
    ],
)
def test_a_room_says_what_it_imports(tmp_path: Path, docstring: str, fault: str | None) -> None:
    root = tree(tmp_path, edge_runtime__errors="", edge_runtime__values="", edge_runtime__web__a="")
    (root / "edge_runtime/web/a.py").write_text("from edge_runtime import errors\n")
    (root / "edge_runtime/web/__init__.py").write_text(f'"""{docstring}"""\n')
    found = faults(root)
    assert fault in found[0] if fault else not found
    (root / "edge_runtime/web/__init__.py").write_text(f'"""{docstring}"""\n\nimport json\n')
    assert "holds more than a docstring" in faults(root)[0]


def test_floors_are_counted(tmp_path: Path) -> None:
    files = {f"edge_runtime__f{i}": f"from edge_runtime import f{i - 1}\n" if i else "" for i in range(12)}
    assert faults(tree(tmp_path, **files)) == ["edge_runtime: 12 floors, at most 11"]


def test_an_empty_tree_a_stale_page_and_a_place_that_is_gone_are_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = (
        "# A `heading` of mine\n\nSee `server/gone.py`, [a](#a-heading-of-mine), [b](#b), [c](page.md#c), [d](gone.md)."
    )
    (tmp_path / "docs" / "page.md").write_text(page)
    found = list(house.check(tmp_path))
    assert "edge_runtime: no Python file was found, so nothing of it was checked" in found
    assert "export: no room was found, so no docstring was checked" in found
    assert any(fault.startswith("docs/files.md is stale") for fault in found)
    assert "docs/page.md names server/gone.py, which does not exist" in found
    assert [f"docs/page.md links to {link}, which leads nowhere" for link in ("#b", "gone.md", "page.md#c")] == [
        fault for fault in found if "leads nowhere" in fault
    ]
    assert any(fault.endswith("goes to device_profiles/, which does not exist") for fault in found)


def test_the_protocols_page_lists_every_message_and_is_stale_once_it_does_not(tmp_path: Path) -> None:
    text = (ROOT / protocol_page.PROTOCOL_PAGE).read_text()
    for kind in get_args(AnyMessage):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        section = text.partition(f"\n### `{info.tag}`\n")[2].partition("\n### ")[0]
        assert all(f"| `{field.encode_name}` |" in section for field in info.fields if field.name != "v"), info.tag
    assert "| `lines` | integer ≥ 0, ≤ 200 |" in text
    assert list(protocol_page.stale_page(tmp_path)) == []  # a tree without the protocol
    (tmp_path / "edge_runtime" / "protocol").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    page = tmp_path / protocol_page.PROTOCOL_PAGE
    for changed, words in ((text.replace("≤ 200 |", "≤ 300 |", 1), "stale"), ("nothing", "does not have the lines")):
        page.write_text(changed)
        (fault,) = protocol_page.stale_page(tmp_path)
        assert words in fault
    page.write_text(text)
    assert list(protocol_page.stale_page(tmp_path)) == []
