"""QEMU's machine virt as a board: power, serial line, snapshots, and a network of this machine's ports alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hil.board.console import Console
from tests.hil.board.qmp import Qmp
from tests.hil.board.tools import TO_BOOT, require, run, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "10.0.2.100"
"""The address at which the board finds this machine."""

CMDLINE = "root=/dev/vda rw console=ttyAMA0 quiet"
"""The kernel's command line for a disk without partitions."""


@dataclass(frozen=True)
class Disk:
    """A disk of the board.

    Attributes:
        path: its file.
        format: ``raw``, or ``qcow2``, which snapshots need.
    """

    path: Path
    format: str


@dataclass(frozen=True)
class Hardware:
    """What does not change while a board is used.

    Attributes:
        kernel: the kernel's image.
        initramfs: its initial file system.
        disk: the disk.
        forwards: ports of this machine that the board reaches, at HOST and the same port.
        ssh_port: the port of this machine at which the board's SSH is; None: nowhere.
        cmdline: the kernel's command line.
        clock: what the board's clock says when it is switched on, as ``2020-01-01T00:00:00``; None: the time.
        cpu: as QEMU names it.
        cores: how many.
        memory_mib: of memory, in MiB.
        stops_at_reboot: whether a reboot ends QEMU, so that another command line can be given.
    """

    kernel: Path
    initramfs: Path
    disk: Disk
    forwards: Sequence[int] = ()
    ssh_port: int | None = None
    cmdline: str = CMDLINE
    clock: str | None = None
    cpu: str = "cortex-a72"
    cores: int = 2
    memory_mib: int = 1024
    stops_at_reboot: bool = False


def overlay(base: Path, path: Path) -> Disk:
    """Make a disk that has what another has, and keeps what is written to itself."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.absolute(), path])
    return Disk(path, "qcow2")


@dataclass
class Machine:
    """A board.

    Attributes:
        hardware: what it is made of.
        folder: where its logs are: ``serial.log``, ``qemu.log``.
    """

    hardware: Hardware
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _console: Console | None = field(default=None, init=False)
    _sockets: Path | None = field(default=None, init=False)

    def start(self, *, snapshot: str | None = None, owns_serial: bool = True, stdio: bool = False) -> None:
        """Switch it on.

        Args:
            snapshot: the state to go on from; None: it boots.
            owns_serial: whether the serial line is ``console``; otherwise it is another one's, at ``serial_path``.
            stdio: the serial line is this process's terminal.

        Raises:
            NotHere: QEMU or nc is not installed.
            RuntimeError: QEMU does not start; the text has what it said.
        """
        require(TO_BOOT)
        assert not self.is_on, "it is on"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="covey-board-"))  # a socket's path is short
        words = self._command(self._sockets, stdio=stdio)
        if snapshot is not None:
            words += ["-loadvm", snapshot]
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdin=None if stdio else subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 60
        while not (self._sockets / "qmp").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"QEMU does not start: {(self.folder / 'qemu.log').read_text()[-500:]}")
            time.sleep(0.02)
        if owns_serial and not stdio:
            self._console = Console(self.serial_path, self.folder / "serial.log")

    @property
    def is_on(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def serial_path(self) -> Path:
        """The UNIX socket of the serial line, while the board is on."""
        assert self._sockets is not None, "it is off"
        return self._sockets / "serial"

    @property
    def console(self) -> Console:
        """The serial line, while the board is on."""
        assert self._console is not None, "it is off, or the serial line is another one's"
        return self._console

    @property
    def pid(self) -> int:
        """QEMU's process."""
        assert self._process is not None, "it is off"
        return self._process.pid

    def power_cut(self) -> None:
        """Take the power away: what the board had not flushed to its disk is lost, and nothing is told to it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._forget()

    def stop(self) -> None:
        """Switch off, with what was written to the disk kept; the system on the board is not asked to shut down."""
        if self.is_on:
            self._qmp("quit")
        self._forget()

    def wait_off(self, timeout_s: float = 300.0) -> None:
        """Wait until QEMU has ended: the board was shut down, or rebooted where that stops it."""
        assert self._process is not None, "it is off"
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the board is still on after {timeout_s:.0f} s")
            try:
                self.console.wait_for(r"[^\s\S]", 1.0, lambda: self.is_on)
            except (TimeoutError, ConnectionError, OSError):
                time.sleep(0.05)  # what it prints must be read, or QEMU waits
        self._forget()

    def save(self, snapshot: str) -> None:
        """Keep memory and disk under a name; close connections before, they cannot be kept."""
        self._monitor(f"savevm {snapshot}")

    def load(self, snapshot: str) -> None:
        """Go back to what was kept under a name."""
        self._monitor(f"loadvm {snapshot}")

    def _qmp(self, name: str) -> None:
        assert self._sockets is not None
        qmp = Qmp(self._sockets / "qmp")
        try:
            qmp.command(name)
        finally:
            qmp.close()

    def _monitor(self, line: str) -> None:
        assert self._sockets is not None, "it is off"
        qmp = Qmp(self._sockets / "qmp")
        try:
            qmp.monitor(line)
        finally:
            qmp.close()

    def _forget(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._process is not None:
            self._process.wait(60)
            self._process = None
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def _command(self, sockets: Path, *, stdio: bool) -> list[str]:
        """Return QEMU's command line."""
        of = self.hardware
        # A connection of the board's to a forwarded port starts nc, which speaks to the same port here.
        ports = "".join(f",guestfwd=tcp:{HOST}:{port}-cmd:{tool('nc')} 127.0.0.1 {port}" for port in of.forwards)
        ssh = f",hostfwd=tcp:127.0.0.1:{of.ssh_port}-:22" if of.ssh_port is not None else ""
        serial = (
            ["-serial", "mon:stdio"]
            if stdio
            else [
                *("-chardev", f"socket,id=serial,path={sockets / 'serial'},server=on,wait=off"),
                *("-serial", "chardev:serial"),
            ]
        )
        return [
            *(str(tool("qemu-system-aarch64")), "-M", "virt", "-cpu", of.cpu, "-smp", str(of.cores)),
            *("-m", str(of.memory_mib), "-display", "none", "-nodefaults", *serial),
            *("-kernel", str(of.kernel), "-initrd", str(of.initramfs), "-append", of.cmdline),
            *("-drive", f"if=none,id=disk,format={of.disk.format},file={of.disk.path}"),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"),
            *("-netdev", f"user,id=net,restrict=on{ssh}{ports}", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-qmp", f"unix:{sockets / 'qmp'},server=on,wait=off"),
            *(["-rtc", f"base={of.clock}"] if of.clock is not None else []),
            *(["-no-reboot"] if of.stops_at_reboot else []),
        ]
