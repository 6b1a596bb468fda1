"""Strategies of labgrid for Covey's boards: an emulated one, and those on a bench with a power switch and SSH.

labgrid imports this file, because the environments name it; nothing else does, so that tests are collected without it.
"""

from __future__ import annotations

import dataclasses
import shlex
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attr
from labgrid.driver import Driver
from labgrid.driver.commandmixin import CommandMixin
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol, PowerProtocol
from labgrid.strategy import Strategy, StrategyError

from tests.hil.board.machine import HOST, Hardware, Machine, overlay
from tests.hil.board.parts import CACHE, make_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT_S = 600.0


@target_factory.reg_driver
@attr.s(eq=False)
class EmulatedBoardDriver(CommandMixin, Driver, PowerProtocol, CommandProtocol):
    """QEMU's machine virt: power, and commands on its serial line. It is made when it is first switched on.

    Args:
        cpu: as QEMU names it.
        memory_mib: of memory.
    """

    cpu = attr.ib(default="cortex-a72", validator=attr.validators.instance_of(str))
    memory_mib = attr.ib(default=1024, validator=attr.validators.instance_of(int))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.forwards: list[int] = []
        self.clock: str | None = None
        self._folder: Path | None = None
        self._machine: Machine | None = None

    def on_deactivate(self) -> None:
        if self._machine is not None:
            self._machine.power_cut()
        if self._folder is not None:
            # The serial line's log stays: it is what there is to look at where a test has failed.
            (self._folder / "disk.qcow2").unlink(missing_ok=True)

    @property
    def machine(self) -> Machine:
        """The board, made where it was not. NotHere: this machine has no QEMU, or cannot make the root."""
        if self._machine is None:
            parts = make_parts()
            self._folder = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
            disk = overlay(parts.disk, self._folder / "disk.qcow2")
            hardware = Hardware(
                *(parts.kernel, parts.initramfs, disk), self.forwards, cpu=self.cpu, memory_mib=self.memory_mib
            )
            self._machine = Machine(hardware, self._folder)
        return self._machine

    @Driver.check_active
    def on(self) -> None:
        self.machine.hardware = dataclasses.replace(self.machine.hardware, clock=self.clock)
        self.machine.start()
        self.machine.console.wait_login(_BOOT_S)

    @Driver.check_active
    def off(self) -> None:
        self.machine.power_cut()

    @Driver.check_active
    def cycle(self) -> None:
        self.off()
        self.on()

    @Driver.check_active
    def go_back(self, name: str) -> None:
        """Go back to a snapshot, also while it is off."""
        self.machine.power_cut()
        self.machine.hardware = dataclasses.replace(self.machine.hardware, clock=None)
        self.machine.start(snapshot=name)

    def get_status(self) -> int:
        return int(self._machine is not None and self._machine.is_on)

    def _run(self, cmd: str, *, timeout: float = 30.0, **_: Any) -> tuple[list[str], list[str], int]:
        code, text = self.machine.console.run(cmd, timeout)
        return text.splitlines(), [], code

    @Driver.check_active
    def run(self, cmd: str, timeout: float = 30.0, **_: Any) -> tuple[list[str], list[str], int]:
        return self._run(cmd, timeout=timeout)


@target_factory.reg_driver
@attr.s(eq=False)
class EmulatedBoardStrategy(Strategy):
    """The wires of the emulated board."""

    bindings = {"board": "EmulatedBoardDriver"}  # noqa: RUF012
    is_emulated = True

    def reach(self, ports: Sequence[int]) -> str:
        self.board.forwards = list(ports)
        self.target.activate(self.board)
        return HOST

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        lines, _, code = self.board.run(command, timeout=timeout_s)
        return code, "\n".join(lines)

    def power_on(self, clock: str | None = None) -> None:
        self.board.clock = clock
        self.board.on()

    def power_off(self) -> None:
        self.board.off()

    def keep(self, name: str) -> bool:
        self.board.machine.save(name)
        return True

    def go_back(self, name: str) -> None:
        self.board.go_back(name)


@target_factory.reg_driver
@attr.s(eq=False)
class WiredBoardStrategy(Strategy):
    """The wires of a real board: any PowerProtocol, and SSH as a user with sudo.

    Args:
        server_host: this machine's name or address for the board; without it, the address that leads to the board.
        off_s: how long it is without power, until its capacitors are empty.
    """

    bindings = {"power": "PowerProtocol", "ssh": "SSHDriver"}  # noqa: RUF012
    is_emulated = False
    server_host = attr.ib(default=None, validator=attr.validators.optional(attr.validators.instance_of(str)))
    off_s = attr.ib(default=5, validator=attr.validators.instance_of(int))

    def reach(self, ports: Sequence[int]) -> str:
        del ports  # the board has a network of its own
        self.target.activate(self.power)
        return self.server_host or _own_address(self.ssh.networkservice.address)

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        self.target.activate(self.ssh)
        out, err, code = self.ssh.run(f"sudo -n sh -c {shlex.quote(command)}", timeout=timeout_s)
        return code, "\n".join([*out, *err] if code else out)

    def power_on(self, clock: str | None = None) -> None:
        """Switch it on. ``clock``: set as soon as there is a shell; the service then starts anew, as at a boot."""
        self.power.on()
        self._wait_shell()
        if clock is not None:
            # A Pi 5 and a Jetson have a clock of their own; the others keep the last time. Both are written.
            self.run("timedatectl set-ntp false; systemctl stop covey-edge", 60.0)
            self.run(f"date -u -s {clock}; hwclock -w 2>/dev/null; systemctl start --no-block covey-edge", 60.0)

    def power_off(self) -> None:
        self.target.deactivate(self.ssh)
        self.power.off()
        time.sleep(self.off_s)  # not to wait for anything: a board keeps running for some time from its capacitors

    def keep(self, name: str) -> bool:
        del name
        return False

    def go_back(self, name: str) -> None:
        raise StrategyError(f"a real board has no snapshot {name}")

    def _wait_shell(self) -> None:
        deadline, last = time.monotonic() + _BOOT_S, "it was not tried"
        while time.monotonic() < deadline:
            try:
                self.target.deactivate(self.ssh)
                if self.run("true", 20.0)[0] == 0:
                    return
            except Exception as error:  # noqa: BLE001 labgrid raises Exception itself where SSH does not come in time
                last = str(error)
            time.sleep(1.0)
        raise StrategyError(f"no SSH in {_BOOT_S:.0f} s after power came ({last}); look at the board's serial line")


def _own_address(other: str) -> str:
    """Return this machine's address on the way to another one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))
        return str(probe.getsockname()[0])
