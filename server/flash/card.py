"""A card image: its boot partition (FAT) and its root partition (ext4), read and written without mounting them."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError, storage_error
from server.flash.holes import copy_part
from server.flash.tools import require_tools, run_tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOOLS = ("sfdisk", "mcopy", "mdir", "debugfs", "e2fsck", "resize2fs")
_FAT_TYPES, _LINUX_TYPES = ("b", "c", "e", "ef"), ("83",)
_FAT_GPT, _LINUX_GPT = (
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    ("0FC63DAF-8483-4772-8E79-3D69D8477DE4", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
)
_HINT = "give a stock Raspberry Pi OS Lite (64-bit) image: https://www.raspberrypi.com/software/operating-systems/"
_E2FSCK_MENDED = (0, 1)
_MIB = 1 << 20


@dataclass(frozen=True)
class Partition:
    """A partition of an image.

    Attributes:
        number: its number, from 1.
        start_bytes: where it begins.
        size_bytes: how long it is.
    """

    number: int
    start_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class RootFile:
    """A file for the root partition.

    Attributes:
        path: absolute path on the board.
        mode: permissions, as ``0o644``; the owner is root.
        data: what is in it; a path: a file here that is copied; None: it is a folder.
        target: what a symbolic link leads to; None: it is no link.
    """

    path: str
    mode: int = 0o644
    data: bytes | Path | None = None
    target: str | None = None


class Card:
    """A card image.

    Args:
        path: the image, unpacked.

    Raises:
        ConfigError: it has no partition table, or not the two partitions; or a tool is missing.
    """

    def __init__(self, path: Path) -> None:
        require_tools(_TOOLS)
        self.path = path
        self.boot, self.root = _partitions(path)

    # -- the boot partition --------------------------------------------------------------------------------------------

    def boot_files(self) -> list[str]:
        """Return the names of the files and folders at the top of the boot partition."""
        listed = run_tool(["mdir", "-b", "-i", self._fat, "::"], environment=_MTOOLS).decode()
        return sorted(line.removeprefix("::/").rstrip("/") for line in listed.splitlines() if line.startswith("::/"))

    def read_boot(self, name: str) -> bytes:
        """Return a file of the boot partition; StorageError: it is not there."""
        return run_tool(["mcopy", "-n", "-i", self._fat, f"::{name}", "-"], environment=_MTOOLS)

    def write_boot(self, files: Mapping[str, bytes]) -> None:
        """Write files at the top of the boot partition."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                source = Path(folder) / "file"
                source.write_bytes(data)
                run_tool(["mcopy", "-o", "-i", self._fat, str(source), f"::{name}"], environment=_MTOOLS)

    @property
    def _fat(self) -> str:
        return f"{self.path}@@{self.boot.start_bytes}"

    # -- the root partition --------------------------------------------------------------------------------------------

    def has(self, path: str) -> bool:
        """Whether a path is in the root partition."""
        return self._debugfs(f"stat {_quoted(path)}").lstrip().startswith(b"Inode:")

    def list_root(self, path: str) -> list[str]:
        """Return the names in a folder of the root partition; none where there is no such folder."""
        listed = self._debugfs(f"ls -p {_quoted(path)}").decode(errors="replace")
        parts = [line.split("/") for line in listed.splitlines() if line.startswith("/")]
        return sorted(part[5] for part in parts if len(part) > 5 and part[5] not in (".", ".."))

    def read_root(self, path: str) -> bytes | None:
        """Return a file of the root partition, links followed; None: it is not there."""
        seen = path
        for _ in range(8):
            target = self._link_target(seen)
            if target is None:
                break
            joined = PurePosixPath(seen).parent / target
            seen = os.path.normpath(str(joined))
        if not self.has(seen):
            return None
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "file"
            self._debugfs(f"dump {_quoted(seen)} {_quoted(str(out))}")
            return out.read_bytes() if out.exists() else None

    def mode_of(self, path: str) -> tuple[int, int] | None:
        """Return mode (with its type bits) and owner of a path of the root partition; None: it is not there."""
        described = self._debugfs(f"stat {_quoted(path)}").decode(errors="replace")
        mode = re.search(r"Type: (\S+)\s+Mode:\s+(\d+)", described)
        owner = re.search(r"^User:\s+(\d+)", described, re.MULTILINE)
        if mode is None or owner is None:
            return None
        kinds = {"regular": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
        return kinds.get(mode[1], 0) | int(mode[2], 8), int(owner[1])

    def write_root(self, files: Iterable[RootFile]) -> None:
        """Write files, folders and links into the root partition; what was at their paths is replaced.

        Raises:
            StorageError: one of them is not there afterwards as it should be.
        """
        wanted = list(files)
        with tempfile.TemporaryDirectory() as folder:
            lines: list[str] = []
            made: set[str] = set()
            for index, file in enumerate(wanted):
                self._make_parents(file, made, lines)
                lines += self._lines_for(file, Path(folder) / f"{index}")
            script = Path(folder) / "script"
            script.write_text("".join(f"{line}\n" for line in lines))
            run_tool(["debugfs", "-w", "-f", str(script), self._ext])
        for file in wanted:
            self._check_written(file)

    def _make_parents(self, file: RootFile, made: set[str], lines: list[str]) -> None:
        for parent in reversed(PurePosixPath(file.path).parents):
            name = str(parent)
            if name in made or name == "/" or self.has(name):
                continue
            made.add(name)
            lines += _folder_lines(name, 0o755)
        if file.data is None and file.target is None:
            made.add(file.path)

    def _lines_for(self, file: RootFile, source: Path) -> list[str]:
        """Return debugfs's commands for one file."""
        parent, name = str(PurePosixPath(file.path).parent), PurePosixPath(file.path).name
        if file.data is None and file.target is None:
            return (
                _owned(file.path, stat.S_IFDIR | file.mode)
                if self.has(file.path)
                else _folder_lines(file.path, file.mode)
            )
        lines = [f"rm {_quoted(file.path)}"] if self.has(file.path) else []
        lines.append(f"cd {_quoted(parent)}")
        if file.target is not None:
            return [*lines, f"symlink {_quoted(name)} {_quoted(file.target)}"]
        if isinstance(file.data, bytes):
            source.write_bytes(file.data)
        else:
            assert file.data is not None  # noqa: S101 folders and links have been seen to
            source = file.data.absolute()
        return [*lines, f"write {_quoted(str(source))} {_quoted(name)}", *_owned(file.path, stat.S_IFREG | file.mode)]

    def _check_written(self, file: RootFile) -> None:
        if file.target is not None:
            is_there = self._link_target(file.path) == file.target
        else:
            found = self.mode_of(file.path)
            kind = stat.S_IFDIR if file.data is None else stat.S_IFREG
            is_there = found == (kind | file.mode, 0)
            if is_there and file.data is not None:
                expected = file.data if isinstance(file.data, bytes) else file.data.read_bytes()
                is_there = self.read_root(file.path) == expected
        if not is_there:
            raise StorageError(
                f"{file.path} could not be written into the image",
                "there may be no room left in its root partition; start again from the stock image",
            )

    def _link_target(self, path: str) -> str | None:
        for line in self._debugfs(f"stat {_quoted(path)}").decode(errors="replace").splitlines():
            if line.startswith("Fast link dest: "):
                return line.partition('"')[2].rstrip('"')
        return None

    def free_bytes(self) -> int:
        """Return how many bytes are free in the root partition."""
        found: dict[str, int] = {}
        for line in self._debugfs("stats -h").decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("Free blocks", "Block size", "Reserved block count"):
                found[name] = int(value)
        try:
            return found["Free blocks"] * found["Block size"]
        except KeyError as error:
            raise ConfigError(f"the root partition of {self.path} is no ext4 file system", _HINT) from error

    def grow(self, more_bytes: int) -> None:
        """Make the root partition, which must be the last one, and its file system larger.

        resize2fs cuts an image to the length of the file system in it, wherever that begins: it gets a copy of its own.

        Raises:
            StorageError: there is no room for it here, or the file system is damaged.
        """
        size = -(-(self.path.stat().st_size + more_bytes) // _MIB) * _MIB
        copy = self.path.with_name(self.path.name + ".root")
        before = self.root
        try:
            copy_part(self.path, before.start_bytes, before.size_bytes, copy, 0)
            os.truncate(self.path, before.start_bytes)
            os.truncate(self.path, size)
            run_tool(
                ["sfdisk", "--no-reread", "--no-tell-kernel", "-N", str(before.number), str(self.path)], given=b", +\n"
            )
            self.boot, self.root = _partitions(self.path)
            os.truncate(copy, self.root.size_bytes)
            run_tool(["e2fsck", "-f", "-y", str(copy)], codes=_E2FSCK_MENDED)
            run_tool(["resize2fs", str(copy), f"{self.root.size_bytes // 1024}K"])
            copy_part(copy, 0, copy.stat().st_size, self.path, self.root.start_bytes)
        except OSError as error:
            raise storage_error(error, self.path) from error
        finally:
            copy.unlink(missing_ok=True)

    def check_root(self) -> None:
        """Check the root partition's file system; StorageError: it is damaged."""
        run_tool(["e2fsck", "-f", "-n", self._ext])

    @property
    def _ext(self) -> str:
        return f"{self.path}?offset={self.root.start_bytes}"

    def _debugfs(self, command: str) -> bytes:
        return run_tool(["debugfs", "-R", command, self._ext])


_MTOOLS = {"MTOOLS_SKIP_CHECK": "1"}


def _partitions(path: Path) -> tuple[Partition, Partition]:
    """Return an image's boot and root partition."""
    try:
        described = json.loads(run_tool(["sfdisk", "--json", str(path)]))["partitiontable"]
    except StorageError as error:
        raise ConfigError(f"{path} has no partition table: it is no card image", _HINT) from error
    sector = int(described.get("sectorsize", 512))
    boot = root = None
    for number, entry in enumerate(described.get("partitions", []), 1):
        found = Partition(number, entry["start"] * sector, entry["size"] * sector)
        kind = str(entry["type"])
        if boot is None and (kind in _FAT_TYPES or kind in _FAT_GPT):
            boot = found
        elif kind in _LINUX_TYPES or kind in _LINUX_GPT:
            root = found
    if boot is None or root is None:
        raise ConfigError(f"{path} has no FAT partition followed by a Linux partition", _HINT)
    if root.start_bytes + root.size_bytes > path.stat().st_size:
        raise ConfigError(f"{path} is cut short: its root partition ends after the file does", "download it again")
    return boot, root


def _folder_lines(path: str, mode: int) -> list[str]:
    return [f"mkdir {_quoted(path)}", *_owned(path, stat.S_IFDIR | mode)]


def _owned(path: str, mode: int) -> list[str]:
    quoted = _quoted(path)
    return [f"sif {quoted} mode 0{mode:o}", f"sif {quoted} uid 0", f"sif {quoted} gid 0"]


def _quoted(path: str) -> str:
    """Return a path as debugfs reads it."""
    return f'"{path}"' if " " in path else path
