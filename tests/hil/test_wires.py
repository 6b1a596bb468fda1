"""The wires of a real board, a switched socket and SSH, with the emulated board at their ends."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from repository import ROOT

from tests.hil.board.machine import Hardware, Machine, overlay
from tests.hil.board.parts import make_parts
from tests.hil.board.tools import NotHere
from tests.hil.lab.plug import switched_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.hil, pytest.mark.timeout(900)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def machine(lg_environment: str, tmp_path: Path) -> Iterator[Machine]:
    """The emulated board, which takes SSH for user pi with the key ``tmp_path/key``."""
    try:
        parts = make_parts()
        disk = overlay(parts.disk, tmp_path / "disk.qcow2")
        made = Machine(Hardware(parts.kernel, parts.initramfs, disk, ssh_port=_free_port()), tmp_path)
        made.start()
    except NotHere as error:
        pytest.skip(str(error))
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
        made.console.wait_login(600.0)
        for command in (
            "install -d -o pi -g pi -m 700 /home/pi/.ssh",
            f"echo '{(tmp_path / 'key.pub').read_text().strip()}' > /home/pi/.ssh/authorized_keys",
            "chown pi: /home/pi/.ssh/authorized_keys && ssh-keygen -A && touch /etc/ssh/sshd_config",
            "systemctl enable ssh",
            "systemctl start ssh || { journalctl -u ssh -n 20 --no-pager -o cat; /usr/sbin/sshd -t; false; }",
            "sync",
        ):
            code, said = made.console.run(command)
            assert code == 0, said
        yield made
    finally:
        made.power_cut()


def test_a_switched_socket_and_ssh_do_what_the_tests_need(machine: Machine, tmp_path: Path) -> None:
    from labgrid import Environment

    def switch(on: bool) -> None:
        machine.start() if on else machine.power_cut()

    with switched_socket(switch) as (address, _):
        described: dict[str, Any] = yaml.safe_load((ROOT / "tests/hil/environments/rpi5.yaml").read_text())
        main = described["targets"]["main"]
        main["resources"]["NetworkService"] = {
            "address": "127.0.0.1",
            "port": machine.hardware.ssh_port,
            "username": "pi",
        }
        main["resources"]["NetworkPowerPort"]["host"] = address
        main["drivers"]["SSHDriver"]["keyfile"] = str(tmp_path / "key")
        main["drivers"]["WiredBoardStrategy"]["off_s"] = 0
        for name in ("USBSerialPort", "USBSDMuxDevice"):
            del main["resources"][name]
        for name in ("SerialDriver", "USBSDMuxDriver"):
            del main["drivers"][name]
        (tmp_path / "board.yaml").write_text(yaml.safe_dump(described))
        environment = Environment(str(tmp_path / "board.yaml"))
        try:
            wires = environment.get_target("main").get_driver("Strategy", activate=False)
            assert wires.reach([1883]) == "127.0.0.1"
            assert wires.run("id -un; false", 60.0) == (1, "root")
            boot = wires.run("cat /proc/sys/kernel/random/boot_id", 60.0)
            wires.power_off()
            assert not machine.is_on
            wires.power_on("2020-01-01T00:00:00")
            code, another = wires.run("cat /proc/sys/kernel/random/boot_id; date +%Y", 60.0)
            assert code == 0
            assert another.split()[0] != boot[1]
            assert another.split()[1] == "2020"
            assert not wires.keep("x")
        finally:
            environment.cleanup()
