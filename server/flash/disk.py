"""Writes a card image to a disk: only to one that can be removed and is in no use, and reads it back.

The first megabyte, which has the partition table, is written last: a card on which the work was interrupted has no
partitions, and nobody takes it for a finished one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, CoveyError, StorageError, storage_error
from server.flash.tools import run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_BLOCK_BYTES = 4 << 20
_FIRST_BYTES = 1 << 20
_SYSTEM = ("/", "/boot", "/boot/efi", "/boot/firmware", "/home", "/usr", "/var", "[SWAP]")
_COLUMNS = "NAME,PATH,TYPE,RM,HOTPLUG,RO,SIZE,MODEL,TRAN,MOUNTPOINTS"


@dataclass(frozen=True)
class Disk:
    """A disk of this machine.

    Attributes:
        path: its device file.
        size_bytes: how large it is; 0: a reader without a card.
        model: what it calls itself.
        is_removable: whether it can be taken out.
        is_read_only: whether it is locked.
        mounted: where it, or a part of it, is mounted.
    """

    path: str
    size_bytes: int
    model: str
    is_removable: bool
    is_read_only: bool
    mounted: tuple[str, ...]


def list_disks() -> list[Disk]:
    """Return the disks of this machine."""
    return disks_in(run_tool(["lsblk", "--json", "--bytes", "--output", _COLUMNS]))


def disks_in(text: bytes) -> list[Disk]:
    """Return the disks that ``lsblk --json --bytes`` has listed."""
    return [_disk(entry) for entry in json.loads(text)["blockdevices"] if entry["type"] == "disk"]


def _disk(entry: Mapping[str, Any]) -> Disk:
    return Disk(
        path=entry["path"],
        size_bytes=int(entry["size"] or 0),
        model=(entry.get("model") or "unnamed").strip(),
        is_removable=bool(entry["rm"] or entry["hotplug"]),
        is_read_only=bool(entry["ro"]),
        mounted=tuple(sorted(_mounts(entry))),
    )


def _mounts(entry: Mapping[str, Any]) -> set[str]:
    found = {point for point in entry.get("mountpoints") or [] if point}
    for child in entry.get("children") or []:
        found |= _mounts(child)
    return found


def check_disk(path: str, image_bytes: int, disks: Sequence[Disk], *, force: bool) -> Disk:
    """Return the disk that an image may be written to.

    Args:
        path: its device file, or a link to it.
        image_bytes: the image's size.
        disks: the disks of this machine.
        force: also where it cannot be removed; a mounted or a system disk is never written to.

    Raises:
        ConfigError: it may not; the error says why.
    """
    resolved = str(Path(path).resolve())
    found = next((disk for disk in disks if disk.path == resolved), None)
    choices = ", ".join(f"{disk.path} ({disk.model}, {_gigabytes(disk.size_bytes)})" for disk in disks if _may(disk))
    hint = f"cards that can be written: {choices}" if choices else "put a card into the reader; see: lsblk"
    if found is None:
        is_part = any(resolved.startswith(disk.path) for disk in disks)
        raise ConfigError(f"{path} is {'a part of a disk' if is_part else 'no disk'}, not a whole disk", hint)
    if any(point in _SYSTEM for point in found.mounted):
        raise ConfigError(f"{path} ({found.model}) is a disk of this machine's own system", hint)
    if found.mounted:
        raise ConfigError(
            f"{path} ({found.model}) is mounted at {', '.join(found.mounted)}", f"sudo umount {path}?*; or {hint}"
        )
    if not found.is_removable and not force:
        raise ConfigError(f"{path} ({found.model}) is no removable disk", f"{hint}; or --force, if you are certain")
    if found.is_read_only:
        raise ConfigError(f"{path} ({found.model}) is locked", "move the switch at the side of the card")
    if found.size_bytes < image_bytes:
        raise ConfigError(
            f"{path} ({found.model}) has {_gigabytes(found.size_bytes)}, and the image needs {_gigabytes(image_bytes)}",
            "use a larger card",
        )
    return found


def _may(disk: Disk) -> bool:
    return disk.is_removable and disk.size_bytes > 0 and not disk.mounted and not disk.is_read_only


def write_disk(image: Path, device: Path, progress: Callable[[str, int, int], None]) -> None:
    """Write an image to a disk that check_disk has allowed, and read it back.

    Args:
        image: the card image.
        device: the disk's device file.
        progress: is called with what is done (``writing`` or ``reading back``), its bytes, and all there are.

    Raises:
        StorageError: it cannot be written, or reads back otherwise; the card has no partition table then.
    """
    size = image.stat().st_size
    try:
        target = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(error, device) from error
    try:
        with image.open("rb") as source:
            os.pwrite(target, bytes(min(_FIRST_BYTES, size)), 0)
            os.fsync(target)
            first, digest = source.read(_FIRST_BYTES), hashlib.sha256()
            digest.update(first)
            done = len(first)
            while block := source.read(_BLOCK_BYTES):
                _write_all(target, block, done)
                digest.update(block)
                done += len(block)
                progress("writing", done, size)
            os.fsync(target)
        _compare(target, size, first, digest.hexdigest(), lambda read: progress("reading back", read, size))
        _write_all(target, first, 0)
        os.fsync(target)
        _forget_cached(target)
        if os.pread(target, len(first), 0) != first:
            raise StorageError(f"{device} does not keep what is written to it", "use another card")
    except OSError as error:
        raise _failed(error, device) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(target)


def eject(device: Path) -> bool:
    """Have the system let go of a disk; return whether it has: else it is only synchronised."""
    os.sync()
    try:
        run_tool(["eject", str(device)])
    except CoveyError:
        return False
    return True


def _write_all(target: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, offset)
        view, offset = view[count:], offset + count


def _compare(target: int, size: int, first: bytes, expected: str, step: Callable[[int], None]) -> None:
    """Read everything but the first megabyte back."""
    _forget_cached(target)
    digest, done = hashlib.sha256(first), len(first)
    while done < size:
        block = os.pread(target, min(_BLOCK_BYTES, size - done), done)
        if not block:
            break
        digest.update(block)
        done += len(block)
        step(done)
    if digest.hexdigest() != expected:
        raise StorageError(
            "the card reads back otherwise than it was written: it is worn out, or not as large as it says",
            "use another card; this one has no partition table now",
        )


def _forget_cached(target: int) -> None:
    """Have the next read come from the disk."""
    os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)


def _failed(error: OSError, device: Path) -> StorageError:
    found = storage_error(error, device)
    return StorageError(
        f"{found.what}: the card is not finished, and has no partition table",
        "was it pulled out? put it in again, and start again" if not isinstance(error, PermissionError) else "use sudo",
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
