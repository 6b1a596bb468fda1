"""Makes what the board boots: kernel, initial file system, and a disk with Debian and Covey's own package on it.

Each is kept by a hash of what it is made from: Debian's packages by their list, the disk by Covey's sources too.
"""

from __future__ import annotations

import compileall
import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from server.flash.debian import PACKAGE, make_package
from server.flash.environment import Sources
from server.flash.places import FIRST, RUNNING, SLOTS
from tests.hil.board import debian
from tests.hil.board.initramfs import make_initramfs
from tests.hil.board.tools import TO_BUILD, require, require_root, run

CACHE = Path(".covey/board")
"""Where everything is kept, below the folder of the repository."""

_REPOSITORY = Path(__file__).parents[3]
_DISK_MIB = 1536
_COVEY_UID = 900
_OF_SYSTEM = ["tests/hil/board/debian.py", "tests/hil/board/initramfs.py"]


@dataclass(frozen=True)
class System:
    """Debian for the board, without Covey.

    Attributes:
        kernel: the kernel's image.
        initramfs: its initial file system.
        archive: the root file system as a tar file; cards are made from it.
    """

    kernel: Path
    initramfs: Path
    archive: Path


@dataclass(frozen=True)
class Parts:
    """What the board boots.

    Attributes:
        kernel: the kernel's image.
        initramfs: its initial file system.
        disk: an ext4 file system without partitions: Debian, with Covey's package. Nothing is written to it.
    """

    kernel: Path
    initramfs: Path
    disk: Path


def make_system(cache: Path = CACHE) -> System:
    """Return Debian for the board, made where it is not there.

    Raises:
        NotHere: this machine cannot make it; the text says what is missing.
    """
    folder = cache / f"debian-{_key_of(_OF_SYSTEM)}"
    if not folder.exists():
        require_root()
        require(TO_BUILD)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as work:
            _make_system(Path(work), folder)
    return System(folder / "kernel", folder / "initramfs", folder / "system.tar")


def make_parts(cache: Path = CACHE) -> Parts:
    """Return what the board boots, made where it is not there.

    Raises:
        NotHere: this machine cannot make it; the text says what is missing.
    """
    folder = cache / f"covey-{_key_of(['edge_runtime', 'server/flash', 'tests/hil/board/parts.py', *_OF_SYSTEM])}"
    system = make_system(cache)
    if not folder.exists():
        require_root()
        require(TO_BUILD)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as work:
            _make_disk(Path(work), system.archive, folder)
    return Parts(system.kernel, system.initramfs, folder / "disk.ext4")


def make_file_system(root: Path, disk: Path, size_mib: int, *, offset_bytes: int = 0) -> None:
    """Write a folder as an ext4 file system, with owners and modes; into a file at an offset, where it is a card."""
    place = ["-E", f"offset={offset_bytes}"] if offset_bytes else []
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, *place, disk, f"{size_mib << 10}k"])


def _make_system(work: Path, folder: Path) -> None:
    """Fetch Debian, set it up, and write kernel, initial file system and the root as a tar file."""
    made = work / "system"
    made.mkdir()
    fetched, root = work / "fetched.tar", work / "root"
    debian.fetch_debian(fetched)
    debian.unpack_debian(fetched, root)
    fetched.unlink()
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    run(["depmod", "-b", root, version])
    make_initramfs(root, version, made / "initramfs")
    shutil.copy(kernel, made / "kernel")
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()
    _compile(root, "usr/lib/python3", f"usr/lib/python{debian.PYTHON}")
    run(["tar", "-cpf", made / "system.tar", "--numeric-owner", "-C", root, "."])
    shutil.rmtree(root)
    made.replace(folder)


def _make_disk(work: Path, archive: Path, folder: Path) -> None:
    """Write the disk: Debian, and Covey's package as dpkg would have installed it."""
    made, root = work / "disk", work / "root"
    made.mkdir()
    root.mkdir()
    run(["tar", "-xpf", archive, "--numeric-owner", "-C", root])
    package = make_package(debian.PYTHON, "aarch64", Sources(), work)
    run(["dpkg-deb", "-x", package, root])
    package.unlink()
    _add_service_user(root)
    debian.link(
        root / "etc/systemd/system/multi-user.target.wants/covey-edge.service",
        "/usr/lib/systemd/system/covey-edge.service",
    )
    _fill_slots(root)
    make_file_system(root, made / "disk.ext4", _DISK_MIB)
    shutil.rmtree(root)
    made.replace(folder)


def _add_service_user(root: Path) -> None:
    """Make the user of the service and its folders: what payload.MAKE_USER does on a board that runs."""
    lines = {
        "passwd": f"covey:x:{_COVEY_UID}:{_COVEY_UID}::/var/lib/covey:/usr/sbin/nologin\n",
        "group": f"covey:x:{_COVEY_UID}:\n",
        "shadow": "covey:!:19000::::::\n",
    }
    for name, line in lines.items():
        with (root / "etc" / name).open("a") as file:
            file.write(line)
    for path in (root / "var/lib/covey", root / "var/lib/covey/data"):
        path.mkdir(mode=0o750)
        shutil.chown(path, _COVEY_UID, _COVEY_UID)


def _fill_slots(root: Path) -> None:
    """Put the package's environment into the launcher's slots: what places.BEGIN_SCRIPT does on a board that runs."""
    slots = root / SLOTS.lstrip("/")
    shutil.copytree(root / PACKAGE.lstrip("/"), slots / FIRST, symlinks=True)
    (root / RUNNING.lstrip("/")).symlink_to(FIRST)
    _compile(root, f"{SLOTS}/{FIRST}/lib".lstrip("/"))
    run(["chown", "-hR", f"{_COVEY_UID}:{_COVEY_UID}", slots])


def _compile(root: Path, *folders: str) -> None:
    """Compile Python here, where this machine's Python is the board's: it takes a board a long time under emulation."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != debian.PYTHON:
        return
    for name in folders:
        compileall.compile_dir(root / name, stripdir=str(root), prependdir="/", quiet=2, workers=0)


def _key_of(places: list[str]) -> str:
    """Return a hash of the names and contents of files."""
    found = hashlib.sha256()
    for place in places:
        path = _REPOSITORY / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so":
                found.update(f"{file.relative_to(_REPOSITORY)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]
