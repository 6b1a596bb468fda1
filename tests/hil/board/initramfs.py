"""Makes an initial file system of a busybox, a few kernel modules and one script; Debian's is twenty times as large.

It finds the root partition as the kernel's command line names it: by its device, or by PARTUUID, as a card's does.
"""

from __future__ import annotations

import gzip
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FIRST = ("virtio_pci", "virtio_blk")
"""Modules without which the disk is not there; ext4 is in the kernel."""

_INIT = """\
#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module; done
read -r line </proc/cmdline
root= init=/sbin/init
set -f
for word in $line; do
    case $word in root=*) root=${word#root=};; init=*) init=${word#init=};; esac
done
set +f
find_root() {
    case $root in
    PARTUUID=*)
        # Of an MBR: the disk's signature, little-endian at byte 440, and the partition's number.
        for disk in /sys/block/vd*; do
            name=${disk##*/}
            id=$(dd if=/dev/$name bs=1 skip=440 count=4 2>/dev/null | od -An -tx4 | tr -d ' ')
            for part in $disk/$name*; do
                [ -e "$part/partition" ] || continue
                number=$(printf %02x $(cat $part/partition))
                [ "PARTUUID=$id-$number" = "$root" ] && echo /dev/${part##*/} && return
            done
        done;;
    *) [ -b "$root" ] && echo $root;;
    esac
}
for try in $(seq 100); do
    device=$(find_root)
    [ -n "$device" ] && break
    sleep 0.1
done
mkdir -p /new
if [ -z "$device" ] || ! mount -t ext4 -o rw $device /new; then
    echo "board: no root file system at '$root'"
    poweroff -f
fi
for folder in dev proc sys; do mount --move /$folder /new/$folder; done
exec switch_root /new $init
"""


def make_initramfs(root: Path, version: str, archive: Path) -> None:
    """Write the initial file system for a root with its kernel's modules.

    Args:
        root: a root file system with busybox-static in it.
        version: of the kernel.
        archive: the file that is written.
    """
    modules = _with_needed(root / "lib/modules" / version)
    busybox = (root / "usr/bin/busybox").read_bytes()
    applets = "sh mount insmod cat dd od tr printf seq sleep mkdir echo poweroff switch_root".split()
    entries: list[tuple[str, int, bytes]] = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "proc", "sys", "new", "modules")),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox),
        *((f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in applets),
        *((f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules),
        ("modules/order", stat.S_IFREG | 0o644, "\n".join(path.name for path in modules).encode()),
        ("init", stat.S_IFREG | 0o755, _INIT.encode()),
    ]
    archive.write_bytes(gzip.compress(_cpio(entries), 1, mtime=0))


def _with_needed(folder: Path) -> list[Path]:
    """Return the modules in the order in which they are loaded, what they need first, as depmod found it."""
    needed: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needed[name] = rest.split()
    found: list[str] = []
    for wanted in _FIRST:
        path = next(name for name in needed if name.endswith(f"/{wanted}.ko"))
        found += [name for name in (*reversed(needed[path]), path) if name not in found]
    return [folder / name for name in found]


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Pack names, modes and contents as the kernel reads them: cpio, format newc."""
    result = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        result += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        result += bytes(-len(result) % 4)
        result += data + bytes(-len(data) % 4)
    return bytes(result)
