"""What packages need on a board, whose Python and machine are not this one's: pip looks at its own when it decides."""

from __future__ import annotations

from email.parser import HeaderParser
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


def board_markers(python: str, machine: str) -> Mapping[str, str]:
    """Return the environment markers (PEP 508) of a board with Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": "",
    }


def missing_packages(site: Path, python: str, machine: str) -> list[str]:
    """Return what the packages in a folder need on a board and is not in it, as requirements without markers."""
    texts = [(info / "METADATA").read_text(errors="replace") for info in sorted(site.glob("*.dist-info"))]
    parsed = [HeaderParser().parsestr(text) for text in texts]
    there = {canonicalize_name(headers["Name"]) for headers in parsed}
    needed = [line for headers in parsed for line in headers.get_all("Requires-Dist") or []]
    return sorted({one for line in needed if (one := _wanted(line, board_markers(python, machine), there)) is not None})


def _wanted(line: str, markers: Mapping[str, str], there: Collection[str]) -> str | None:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return None  # pip has refused or ignored it
    if canonicalize_name(requirement.name) in there:
        return None
    if requirement.marker is not None and not requirement.marker.evaluate(dict(markers)):
        return None
    requirement.marker = None
    return str(requirement)
