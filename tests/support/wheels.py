"""Wheels of Covey for tests: one that pip builds from this repository, and others made of it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from repository import ROOT

_SOURCES = ("edge_runtime", "server", "export")
_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def copied_sources(folder: Path, *left_out: str) -> Path:
    """Copy what Covey's wheel is built of into a folder, and return its place.

    A build in the checkout itself rewrites what says there which packages Covey needs, while other tests read it.
    """
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", *left_out)
    for name in _SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in _FILES:
        shutil.copy2(ROOT / name, copy / name)
    return copy


def build_wheel(folder: Path) -> Path:
    """Build Covey's wheel with pip, from a copy of the sources, without the compiled kernel and without a network."""
    copy = copied_sources(folder, "native")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"COVEY_KERNEL": "numpy"}
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], check=True, env=environment)
    (wheel,) = folder.glob("covey-*.whl")
    shutil.rmtree(copy)
    return wheel


def changed_wheel(
    wheel: Path, version: str, edits: Mapping[str, tuple[str, str]] | None = None, requires: str | None = None
) -> Path:
    """Write a wheel of another version beside one, and return its path.

    Args:
        wheel: the wheel that it is made of.
        version: its version.
        edits: what is replaced in a file of it: the text, and by what.
        requires: one more ``Requires-Dist``.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (old,) = {match[1] for name in files if (match := re.match(r"covey-([^/]+)\.dist-info/", name))}
    todo = dict(edits or {})
    made: dict[str, bytes] = {}
    for name, data in files.items():
        text = data
        if name == "edge_runtime/__init__.py":
            text = text.replace(f'__version__ = "{old}"'.encode(), f'__version__ = "{version}"'.encode())
        if name.endswith(".dist-info/METADATA"):
            more = f"\nRequires-Dist: {requires}" if requires else ""
            text = text.replace(f"\nVersion: {old}".encode(), f"\nVersion: {version}{more}".encode(), 1)
        if name in todo:
            before, after = todo.pop(name)
            assert before.encode() in text, name
            text = text.replace(before.encode(), after.encode(), 1)
        if not name.endswith("/RECORD"):
            made[name.replace(f"covey-{old}.dist-info", f"covey-{version}.dist-info")] = text
    assert not todo
    lines = []
    for name, data in made.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    record = f"covey-{version}.dist-info/RECORD"
    path = wheel.with_name(wheel.name.replace(f"covey-{old}-", f"covey-{version}-", 1))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in made.items():
            archive.writestr(name, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return path
