"""The control groups of this process (versions 1 and 2), with every group above them, and what they limit.

systemd's MemoryMax and CPUQuota, a container's limits and those of a slice are all limits of some group on the way
from the process's own group to the mount: the tightest one holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_runtime.host.sysfs import Sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""Version 1 states no limit as a number of pages near 2⁶³."""


@dataclass(frozen=True)
class Group:
    """One control group: the version of its hierarchy, and its folder."""

    version: int
    folder: Path


def groups_of(controller: str, files: Sysfs | None = None) -> Iterator[Group]:
    """Yield this process's group of a controller and every group above it, up to the mount.

    Args:
        controller: ``cpu`` or ``memory``.
        files: the machine's files; None: this machine's.
    """
    files = files or Sysfs()
    paths = _paths(files, controller)
    for version, mount, mounted in _mounts(files, controller):
        if version not in paths:
            continue
        folder = files.root / mount.lstrip("/")
        below = _below(paths[version], mounted)
        for parts in range(len(below), -1, -1):
            group = folder.joinpath(*below[:parts])
            if group.is_dir():
                yield Group(version, group)


def _paths(files: Sysfs, controller: str) -> dict[int, str]:
    """Return the path of the process's group by the version of its hierarchy."""
    found: dict[int, str] = {}
    for line in (files.text("proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[2] = path
        elif controller in controllers.split(","):
            found[1] = path
    return found


def _mounts(files: Sysfs, controller: str) -> Iterator[tuple[int, str, str]]:
    """Yield version, place and mounted group of each hierarchy that has the controller."""
    for line in (files.text("proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.split()
        if len(words) < 5 or not kind:
            continue
        mounted, place = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), word) for word in words[3:5])
        if kind[0] == "cgroup2":
            yield 2, place, mounted
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            yield 1, place, mounted


def _below(path: str, mounted: str) -> tuple[str, ...]:
    """Return the parts of a group's path below the mounted group; a group outside of it counts as the mounted one."""
    own, top = PurePosixPath(path).parts, PurePosixPath(mounted).parts
    if own[: len(top)] == top:
        own = own[len(top) :]
    elif top != ("/",):
        return ()
    return () if ".." in own else tuple(part for part in own if part != "/")


def cpu_quota(files: Sysfs | None = None) -> float | None:
    """Return the processors that the tightest group allows, 1.5 for CPUQuota=150%; None: no group limits them."""
    files = files or Sysfs()
    found = []
    for group in groups_of("cpu", files):
        if group.version == 2:
            quota, _, period = (files.read(group.folder / "cpu.max") or "").partition(" ")
        else:
            quota, period = (files.read(group.folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_free_bytes(files: Sysfs | None = None) -> int | None:
    """Return the memory that the tightest group still allows; None: no group limits it.

    File pages that the kernel can drop count as free; those of a tmpfs do not.
    """
    files = files or Sysfs()
    found = [free for group in groups_of("memory", files) if (free := _free_in(group, files)) is not None]
    return min(found, default=None)


def _free_in(group: Group, files: Sysfs) -> int | None:
    limits, usage = (
        (("memory.max", "memory.high"), "memory.current")
        if group.version == 2
        else (("memory.limit_in_bytes",), "memory.usage_in_bytes")
    )
    texts = [files.read(group.folder / name) for name in limits]
    most = min((int(text) for text in texts if text and text.isdigit()), default=_UNLIMITED_BYTES)
    used = files.read(group.folder / usage)
    if most >= _UNLIMITED_BYTES or used is None or not used.isdigit():
        return None
    stat = dict(line.split(" ", 1) for line in (files.read(group.folder / "memory.stat") or "").splitlines())
    prefix = "" if group.version == 2 else "total_"
    pages = (stat.get(f"{prefix}{kind}_file", "0") for kind in ("active", "inactive"))
    return max(0, most - int(used) + sum(int(count) for count in pages if count.isdigit()))
