"""The text of the C and C++ sources: the Python files that they name, their error codes, their includes."""

from __future__ import annotations

import importlib
import re

import pytest
from repository import ROOT

from edge_runtime.errors import CoveyError, exit_codes
from server.errors import RemoteFaultError

NATIVE = ROOT / "edge_runtime" / "native"
SOURCES = sorted(path for path in NATIVE.rglob("*") if path.suffix in {".h", ".cpp", ".c"})
WITHOUT_PYTHON = {
    "command_line.h",
    "document.h",
    "engine_callbacks.h",
    "mapped_file.h",
    "names.h",
    "self_test.h",
}
"""Headers of the core for what Python takes from its libraries, or does not have."""
ROOMS = {"files": 0, "bundle": 1, "protocol": 1, "engines": 2, "forward_only": 3, "command": 4}
"""Floors of the core's rooms: a room includes headers of lower floors and its own."""
NOT_FAMILIES = {1: "UNEXPECTED", 2: "USAGE"}
"""Codes without an error class of their own: CoveyError itself, and the command line's usage."""


def test_every_python_file_that_a_source_names_exists() -> None:
    named = [
        (source.relative_to(ROOT).as_posix(), path)
        for source in SOURCES
        for path in re.findall(r"\b(?:edge_runtime|server|export)/[\w/]+\.py\b", source.read_text())
    ]
    assert len(named) >= 15
    assert [(source, path) for source, path in named if not (ROOT / path).is_file()] == []


def test_every_header_of_the_core_names_its_python_file_first() -> None:
    headers = {path.name: path.read_text().splitlines()[0] for path in (NATIVE / "core").rglob("*.h")}
    unnamed = {name for name, first in headers.items() if not re.search(r"edge_runtime/[\w/]+\.py\b", first)}
    assert unnamed == WITHOUT_PYTHON


def test_rooms_of_the_core_include_lower_rooms_only() -> None:
    rooms = {path.name for path in (NATIVE / "core").iterdir() if path.is_dir()}
    assert rooms == ROOMS.keys()
    included = {
        (source.parent.name, room)
        for source in SOURCES
        if source.parent.name in rooms
        for room in re.findall(r'#include "core/(\w+)/', source.read_text())
    }
    assert ("command", "forward_only") in included
    assert [(a, b) for a, b in included if a != b and ROOMS[a] <= ROOMS[b]] == []


def names_by_code() -> dict[int, str]:
    """Return each exit code of every side with the name that C and C++ give it: ConfigError is CONFIG."""
    for module in ("server.errors", "export.errors"):
        importlib.import_module(module)
    families = {
        family.exit_code: family.__name__.removesuffix("Error").upper()
        for family in CoveyError.__subclasses__()
        if family is not RemoteFaultError  # another process's fault has the code of this one's
    }
    assert exit_codes().keys() == families.keys() | {0, 2}
    return {0: "OK"} | NOT_FAMILIES | families


@pytest.mark.parametrize(
    ("path", "enum", "prefix", "never"),
    [
        ("covey.h", "enum covey_code", "COVEY_", {"USAGE", "NETWORK", "JOB", "EXPORT", "ENROLMENT"}),
        ("core/files/error.h", "enum class Code", "", {"OK", "NETWORK", "JOB", "EXPORT", "ENROLMENT"}),
    ],
)
def test_codes_are_pythons_by_name_and_number(path: str, enum: str, prefix: str, never: set[str]) -> None:
    """The core has neither a network nor jobs nor an exporter; the interface has no usage, the C++ side no success."""
    found = re.search(rf"{enum} {{(.*?)}};", (NATIVE / path).read_text(), re.DOTALL)
    assert found is not None
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    listed = [entry.split("=") for entry in body.replace(" ", "").replace("\n", "").split(",") if entry]
    codes = {int(number): name.removeprefix(prefix).upper() for name, number in listed}
    assert codes == {code: name for code, name in names_by_code().items() if name not in never}
