"""Looks into an unpacked Linux_for_Tegra: its release, its Python, its users, and what it starts at boot.

What is looked at was taken from NVIDIA's public tools: ``etc/nv_tegra_release`` comes with apply_binaries.sh, and
nv-oem-config.target, while it is the default target, conflicts with multi-user.target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from edge_runtime.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOTFS, USER_TOOL = "rootfs", "tools/l4t_create_default_user.sh"
RELEASE_FILE, DEFAULT_TARGET = "/etc/nv_tegra_release", "/etc/systemd/system/default.target"
WIZARD = "nv-oem-config.target"
"""NVIDIA's questions at the first boot. While it is the default target, no service of multi-user.target starts."""

_RELEASE = re.compile(r"^# R(\d+) \(release\), REVISION: ([\w.]+)", re.MULTILINE)
_FIRST_USER, _LAST_USER = 1000, 59999
_GET_L4T = "unpack NVIDIA's Jetson Linux driver package, and give its folder Linux_for_Tegra"


@dataclass(frozen=True)
class JetPack:
    """A JetPack that a board can be made with.

    Attributes:
        name: as NVIDIA calls it.
        ubuntu: the version of its Ubuntu.
        python: the version of its Python.
    """

    name: str
    ubuntu: str
    python: str


JETPACKS: Mapping[int, JetPack] = {36: JetPack("JetPack 6", "22.04", "3.10"), 38: JetPack("JetPack 7", "24.04", "3.12")}
"""By the number of the Jetson Linux release: R36, R38."""


@dataclass(frozen=True)
class L4t:
    """An unpacked Linux_for_Tegra.

    Attributes:
        folder: the folder.
        release: its release, as ``R36.4.3``.
        jetpack: what that is.
        users: people who can log in, by name: uid and gid.
        waits_for_wizard: whether NVIDIA's questions at the first boot keep every other service from starting.
        has_user_tool: whether NVIDIA's script that makes a user is there.
        owner: uid of the files of the root file system: 0 where it was unpacked as root.
    """

    folder: Path
    release: str
    jetpack: JetPack
    users: Mapping[str, tuple[int, int]]
    waits_for_wizard: bool
    has_user_tool: bool
    owner: int

    @property
    def rootfs(self) -> Path:
        """The root file system that is flashed to the board."""
        return self.folder / ROOTFS

    @property
    def system(self) -> str:
        """What it is, for people."""
        return f"Jetson Linux {self.release} ({self.jetpack.name}, Ubuntu {self.jetpack.ubuntu})"

    @property
    def python(self) -> str:
        """See payload.Target."""
        return self.jetpack.python

    @property
    def format(self) -> Literal["l4t"]:
        """See payload.Target."""
        return "l4t"


def look_at_l4t(folder: Path) -> L4t:
    """Find out what an unpacked Linux_for_Tegra is.

    Raises:
        ConfigError: it is none, is not ready to be flashed, or is of a release that Covey does not know.
        StorageError: it cannot be read.
    """
    try:
        return _looked_at(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read ({error})", "sudo covey flash jetson …") from error


def _looked_at(folder: Path) -> L4t:
    rootfs = folder / ROOTFS
    if not rootfs.is_dir():
        inside = folder / "Linux_for_Tegra"
        better = inside if inside.is_dir() else folder.parent if folder.name == ROOTFS else None
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"{folder} has no {ROOTFS} in it ({found or 'it is empty'})",
            _GET_L4T if better is None else f"--l4t {better}",
        )
    if not (rootfs / "etc/passwd").is_file() or not (rootfs / "usr").is_dir():
        raise ConfigError(
            f"{rootfs} has no root file system in it, but {_names(rootfs)}",
            f"sudo tar xpf Tegra_Linux_Sample-Root-Filesystem_R…_aarch64.tbz2 -C {rootfs}",
        )
    release, jetpack = _release(folder, rootfs)
    if not (rootfs / f"usr/bin/python{jetpack.python}").exists():
        there = sorted(path.name for path in (rootfs / "usr/bin").glob("python3.*") if path.name[8:].isdigit())
        raise ConfigError(
            f"{rootfs} has no Python {jetpack.python}, which is {jetpack.name}'s, but {', '.join(there) or 'none'}",
            "take NVIDIA's sample root file system, or one that has the package python3",
        )
    target = rootfs / DEFAULT_TARGET[1:]
    waits = target.is_symlink() and target.readlink().name == WIZARD
    has_tool = (folder / USER_TOOL).is_file()
    owner = (rootfs / "etc/passwd").lstat().st_uid
    return L4t(folder, release, jetpack, users_of(rootfs), waits, has_tool, owner)


def _release(folder: Path, rootfs: Path) -> tuple[str, JetPack]:
    path = rootfs / RELEASE_FILE[1:]
    if not path.is_file():
        raise ConfigError(
            f"{rootfs} has no {RELEASE_FILE}: NVIDIA's drivers are not in it yet",
            f"cd {folder} && sudo ./apply_binaries.sh",
        )
    text = path.read_text(errors="replace")
    known = ", ".join(f"R{number} ({jetpack.name})" for number, jetpack in JETPACKS.items())
    found = _RELEASE.search(text)
    if found is None:
        first = text.strip().splitlines()[:1]
        raise ConfigError(f"{RELEASE_FILE} names no release: {first[0][:100] if first else 'it is empty'}", _GET_L4T)
    jetpack = JETPACKS.get(int(found[1]))
    if jetpack is None:
        raise ConfigError(
            f"{rootfs} is Jetson Linux R{found[1]}.{found[2]}, and Covey knows {known}",
            "take one of these; or set the board up, and then: covey provision ssh USER@HOST --device NAME",
        )
    return f"R{found[1]}.{found[2]}", jetpack


def users_of(rootfs: Path) -> dict[str, tuple[int, int]]:
    """Return the people who can log in to a root file system, by name: uid and gid."""
    found = {}
    for line in (rootfs / "etc/passwd").read_text(errors="replace").splitlines():
        parts = line.split(":")
        is_entry = len(parts) == 7 and parts[2].isdigit() and parts[3].isdigit()
        if is_entry and _FIRST_USER <= int(parts[2]) <= _LAST_USER:
            found[parts[0]] = int(parts[2]), int(parts[3])
    return found


def place_in(rootfs: Path, path: str) -> Path:
    """Return where a path of the board is in a root file system here.

    Raises:
        StorageError: a folder on the way is a link, which could lead out of the root file system, into this machine.
    """
    place = rootfs
    for part in PurePosixPath(path).parts[1:-1]:
        place = place / part
        if place.is_symlink():
            raise StorageError(
                f"{place} is a link to {place.readlink()}, and files behind it would be this machine's",
                "take NVIDIA's own sample root file system",
            )
    return place / PurePosixPath(path).name


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
