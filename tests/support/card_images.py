"""Small images as Raspberry Pi OS has them: a partition table, a FAT boot partition, an ext4 root partition.

They have what ``covey flash`` looks at, and nothing that boots.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMATS = ("firstrun", "cloud-init", "rpi-preseed")
TOOLS = ("sfdisk", "mkfs.vfat", "mcopy", "mke2fs", "debugfs")
_SECTOR, _BOOT_START, _BOOT_SECTORS = 512, 8192, 65536
_ROOT_START = _BOOT_START + _BOOT_SECTORS
_MARKS = {
    "firstrun": "usr/lib/raspberrypi-sys-mods/imager_custom",
    "cloud-init": "usr/bin/cloud-init",
    "rpi-preseed": "usr/bin/rpi-preseed",
}


def require_card_tools() -> None:
    """Skip a test where the tools that images are made with are not installed."""
    missing = [name for name in TOOLS if _tool(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt install fdisk dosfstools mtools e2fsprogs")


def write_image(
    folder: Path,
    kind: str = "firstrun",
    *,
    python: str = "3.11",
    loader: str = "aarch64",
    root_mib: int = 48,
    files: Sequence[str] = (),
) -> Path:
    """Write an image that takes its settings in one of FORMATS (another word: in none), and return its path."""
    root, boot = folder / "root", folder / "boot"
    for path in ("usr/bin", "usr/lib/aarch64-linux-gnu", "etc", "opt", "var/lib"):
        (root / path).mkdir(parents=True)
    boot.mkdir()
    (root / "usr/bin" / f"python{python}").write_text(f"Python {python}\n")
    (root / "usr/bin/python3").symlink_to(f"python{python}")
    (root / f"usr/lib/aarch64-linux-gnu/ld-linux-{loader}.so.1").write_text("a loader\n")
    (root / "usr/lib/os-release").write_text('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "etc/fstab").write_text("proc /proc proc defaults 0 0\nPARTUUID=1-01 /boot/firmware vfat defaults 0 2\n")
    for name in (*files, *([_MARKS[kind]] if kind in _MARKS else [])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("#!/bin/sh\n")
    (boot / "cmdline.txt").write_text("console=tty1 root=PARTUUID=1-02 rootfstype=ext4 rootwait quiet\n")
    (boot / "config.txt").write_text("arm_64bit=1\n")
    return _assembled(folder, root, boot, root_mib)


def _assembled(folder: Path, root: Path, boot: Path, root_mib: int) -> Path:
    image, fat = folder / "stock.img", folder / "boot.fat"
    size = _ROOT_START * _SECTOR + (root_mib << 20)
    with image.open("wb") as file:
        file.truncate(size)
    table = (
        f"label: dos\nunit: sectors\nstart={_BOOT_START}, size={_BOOT_SECTORS}, type=c\nstart={_ROOT_START}, type=83\n"
    )
    _run("sfdisk", "-q", str(image), given=table)
    _run("mkfs.vfat", "-F", "16", "-C", str(fat), str(_BOOT_SECTORS // 2))
    _run("mcopy", "-i", str(fat), *(str(path) for path in sorted(boot.iterdir())), "::")
    with image.open("r+b") as file:
        file.seek(_BOOT_START * _SECTOR)
        file.write(fat.read_bytes())
    offset = f"offset={_ROOT_START * _SECTOR}"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-E", offset, str(image), f"{root_mib << 10}k")
    return image


def write_wheels(folder: Path, requirements: Sequence[str]) -> Path:
    """Write empty wheels with the names that requirements have, with a high version, and return their folder."""
    folder.mkdir()
    for line in requirements:
        name = line.partition(";")[0].replace("<", ">").replace("=", ">").partition(">")[0].strip()
        version = {"paho-mqtt": "2.1.0"}.get(name, "99.0")
        module = name.replace("-", "_")
        with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
            info = f"{module}-{version}.dist-info"
            wheel.writestr(f"{module}/__init__.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


def _run(name: str, *arguments: str, given: str = "") -> None:
    path = _tool(name)
    assert path is not None
    subprocess.run([path, *arguments], input=given.encode(), check=True, capture_output=True, timeout=60)


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
