"""What the emulated board is made with, and what is said where it is not here."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

TO_BUILD = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
}
TO_BOOT = {"qemu-system-aarch64": "qemu-system-arm", "qemu-img": "qemu-utils", "nc": "netcat-openbsd"}
"""Programs, and the Debian packages that have them."""


class NotHere(Exception):  # noqa: N818 it says why a test is skipped, and is no error
    """This machine cannot make or boot the board; the text says what is missing and how to get it."""


def require(programs: dict[str, str]) -> None:
    """NotHere: programs are not installed."""
    missing = sorted({package for name, package in programs.items() if tool(name) is None})
    if missing:
        raise NotHere(f"the emulated board needs {', '.join(missing)}: apt install {' '.join(missing)}")


def require_root() -> None:
    """NotHere: this process is not root; owners and device nodes of a root file system are only root's to write."""
    if os.geteuid() != 0:
        raise NotHere("the emulated board's root file system is made by root: sudo make board")


def tool(name: str) -> str | None:
    """Return the path of a program, also of those that Debian keeps in /usr/sbin."""
    return shutil.which(name, path=_PATH)


def run(command: Sequence[str | Path], *, timeout_s: float = 600, given: str | None = None) -> str:
    """Run a program to its end; return what it printed. RuntimeError: it failed; the text has its last lines."""
    name, *arguments = (str(word) for word in command)
    path = tool(name)
    if path is None:
        raise NotHere(f"{name} is not installed")
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=False, timeout=timeout_s, input=given
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise RuntimeError(f"{name} failed ({done.returncode}): {' / '.join(said)}")
    return done.stdout
