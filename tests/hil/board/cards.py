"""Card images as Raspberry Pi OS has them, made of the emulated board's system; and a board that boots from a card.

QEMU has no firmware of a Raspberry Pi, which reads ``cmdline.txt`` from the card's boot partition at each start: here
this is done by ``CardBoard``, and a reboot is a new start of QEMU with what the file says then.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from server.flash.card import Card
from tests.hil.board.machine import Disk, Hardware, Machine
from tests.hil.board.parts import make_file_system
from tests.hil.board.stand_ins import prepare
from tests.hil.board.tools import require_root, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.hil.board.parts import System

TO_MAKE_CARDS = {"sfdisk": "fdisk", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "resize2fs": "e2fsprogs"}
"""Programs, and the Debian packages that have them."""

_SIGNATURE = "c0e7ca4d"
_SECTOR, _BOOT_START, _BOOT_SECTORS = 512, 8192, 65536
_ROOT_START = _BOOT_START + _BOOT_SECTORS
_ROOT_MIB = 560
"""Too little for Covey's environment to be unpacked in: the card must grow."""

_CONSOLES = "console=serial0,115200 console=tty1"
_CMDLINE = f"{_CONSOLES} root=PARTUUID={_SIGNATURE}-02 rootfstype=ext4 fsck.repair=yes rootwait quiet\n"
_FSTAB = f"""\
proc /proc proc defaults 0 0
PARTUUID={_SIGNATURE}-01 /boot/firmware vfat defaults 0 2
PARTUUID={_SIGNATURE}-02 / ext4 defaults,noatime 0 1
"""
_TABLE = f"""\
label: dos
label-id: 0x{_SIGNATURE}
unit: sectors
start={_BOOT_START}, size={_BOOT_SECTORS}, type=c
start={_ROOT_START}, type=83
"""


def make_image(system: System, kind: str, image: Path) -> None:
    """Write a card image that takes its settings at the first boot in one way.

    Args:
        system: of the emulated board.
        kind: ``firstrun``, ``cloud-init`` or ``rpi-preseed``.
        image: the file that is written.

    Raises:
        NotHere: this process is not root.
    """
    require_root()
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".card-") as work:
        root, boot, fat = Path(work) / "root", Path(work) / "boot", Path(work) / "boot.fat"
        root.mkdir()
        boot.mkdir()
        run(["tar", "-xpf", system.archive, "--numeric-owner", "-C", root])
        (root / "etc/fstab").write_text(_FSTAB)
        (root / "boot/firmware").mkdir(parents=True, exist_ok=True)
        prepare(root, kind)
        (boot / "cmdline.txt").write_text(_CMDLINE)
        (boot / "config.txt").write_text("arm_64bit=1\n")
        with image.open("wb") as file:
            file.truncate(_ROOT_START * _SECTOR + (_ROOT_MIB << 20))
        run(["sfdisk", "-q", image], given=_TABLE)
        run(["mkfs.vfat", "-F", "16", "-n", "bootfs", "-C", fat, str(_BOOT_SECTORS // 2)])
        run(["mcopy", "-i", fat, boot / "cmdline.txt", boot / "config.txt", "::"])
        with image.open("r+b") as file, fat.open("rb") as source:
            file.seek(_BOOT_START * _SECTOR)
            shutil.copyfileobj(source, file)
        make_file_system(root, image, _ROOT_MIB, offset_bytes=_ROOT_START * _SECTOR)


class CardBoard:
    """A board with a card in it.

    Args:
        system: kernel and initial file system, which a card of Debian's has none of for QEMU.
        card: the image; what the board writes goes into it.
        folder: for logs.
        forwards: ports of this machine that the board reaches.
        ssh_port: the port of this machine at which its SSH is.
    """

    def __init__(self, system: System, card: Path, folder: Path, forwards: Sequence[int], ssh_port: int) -> None:
        self._card = card
        self._hardware = Hardware(
            system.kernel,
            system.initramfs,
            Disk(card, "raw"),
            forwards,
            ssh_port,
            stops_at_reboot=True,
        )
        self._folder = folder
        self.machine = Machine(self._hardware, folder)

    def cmdline(self) -> str:
        """Return what the firmware gives the kernel: the card's cmdline.txt, with the serial line's real name."""
        text = Card(self._card).read_boot("cmdline.txt").decode().strip()
        return text.replace("console=serial0,", "console=ttyAMA0,")

    def start(self) -> None:
        """Switch it on, as the firmware does."""
        self.machine = Machine(dataclasses.replace(self._hardware, cmdline=self.cmdline()), self._folder)
        self.machine.start()
