"""Runs the programs that images are edited with, and names the Debian package of one that is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGES: Mapping[str, str] = {
    "sfdisk": "fdisk",
    "mcopy": "mtools",
    "mdir": "mtools",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "lsblk": "util-linux",
    "dpkg-deb": "dpkg",
    "eject": "eject",
}
"""The Debian package of each program."""

_SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Where Debian keeps programs that are not on every user's PATH."""


def require_tools(names: Sequence[str]) -> None:
    """Check that programs are there.

    Raises:
        ConfigError: some are not; the hint has the command that installs them.
    """
    missing = [name for name in names if _find(name) is None]
    if missing:
        packages = sorted({PACKAGES[name] for name in missing})
        raise ConfigError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            f"sudo apt install {' '.join(packages)}",
        )


def run_tool(
    arguments: Sequence[str], *, given: bytes = b"", codes: Sequence[int] = (0,), environment: Mapping[str, str] = {}
) -> bytes:
    """Run a program and return what it printed.

    Args:
        arguments: the program and its arguments.
        given: its standard input.
        codes: exit codes with which it has done its work.
        environment: variables for it, beside those of this process.

    Raises:
        ConfigError: it is not installed.
        StorageError: it ended with another code; the error has its last line.
    """
    require_tools(arguments[:1])
    found = _find(arguments[0])
    assert found is not None  # noqa: S101 require_tools has seen it
    done = subprocess.run(
        [found, *arguments[1:]],
        input=given,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
    )
    if done.returncode not in codes:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise StorageError(
            f"{arguments[0]} ended with code {done.returncode}: {lines[-1] if lines else 'it said nothing'}",
            "the image may be damaged: compare its SHA-256 with the one on its download page",
        )
    return done.stdout


def _find(name: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])
    return shutil.which(name, path=path)
