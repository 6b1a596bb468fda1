"""A card that ``covey flash rpi`` made boots into a device that has joined its fleet, and trains; in each format.

The stock image is Debian with what each format needs (tests/hil/board/cards.py); the card is flashed by the command,
read back, and started in QEMU with the kernel's command line that is on it. Nothing is typed on the board before it is
online. Firmware and ``config.txt`` of a Raspberry Pi are not part of this.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port, wait_for
from tiny_models import reviews, write_rows

from tests.hil.board.cards import TO_MAKE_CARDS, CardBoard, make_image
from tests.hil.board.machine import HOST
from tests.hil.board.parts import System, make_system
from tests.hil.board.tools import TO_BOOT, NotHere, require
from tests.hil.lab.fleet_of_boards import FleetOfBoards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from tests.hil.board.console import Console

pytestmark = [pytest.mark.hil, pytest.mark.timeout(3600)]
KINDS = ("firstrun", "cloud-init", "rpi-preseed")
USER, ZONE = "maker", "Europe/Berlin"
BIRTH_S = 1800.0
"""Power to birth under emulation on a busy machine: four minutes when it is quiet."""


@pytest.fixture(scope="module")
def system() -> System:
    try:
        require(TO_MAKE_CARDS)
        require(TO_BOOT)
        return make_system()
    except NotHere as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def fleet(
    system: System, tmp_path_factory: pytest.TempPathFactory, tiny_export: Callable[..., Bundle]
) -> Iterator[FleetOfBoards]:
    del system  # it is skipped before a server is started
    made = FleetOfBoards(tmp_path_factory.mktemp("fleet"), tiny_export("bert", splits=(1,)), "127.0.0.1")
    try:
        made.name_for_boards(HOST)
        made.begin()
        yield made
    finally:
        made.end()
        made.stop()


def covey(*words: str, code: int = 0) -> dict[str, Any]:
    """Run a command of ``covey flash``; return its last line's object."""
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "flash", *words, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def make_key(folder: Path) -> Path:
    """Make a key for SSH; return its private half."""
    key = folder / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    return key


def log_in(key: Path, port: int, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the board over SSH, as the card's user."""
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=60"]
    words = [word for option in options for word in ("-o", option)]
    return subprocess.run(
        ["ssh", *words, "-i", str(key), "-p", str(port), f"{USER}@127.0.0.1", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_boots_into_an_enrolled_device_that_trains(
    kind: str, system: System, fleet: FleetOfBoards, tmp_path: Path
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen: apt install openssh-client")
    stock, out, device = tmp_path / "stock.img", tmp_path / "card.img", f"pi-{kind}"
    key, rows = make_key(tmp_path), tmp_path / "rows.jsonl"
    write_rows(reviews(24, seed=1), rows)
    make_image(system, kind, stock)
    covey(
        *("rpi", "--image", str(stock), "--device", device, "--out", str(out), "--ssh-key", f"{key}.pub"),
        *("--user", USER, "--time-zone", ZONE, "--data", str(rows), "--state-dir", str(fleet.state_dir)),
        *("--url", f"https://{HOST}:{fleet.ports[1]}"),
    )
    stock.unlink()
    found = covey("check", str(out))
    assert (found["problems"], found["first_boot"], found["device"]) == ([], kind, device)

    board = CardBoard(system, out, tmp_path / "log", fleet.ports, free_port())
    try:
        board.start()
        if kind == "firstrun":
            board.machine.wait_off(BIRTH_S)  # the script asks for a reboot
            assert "systemd.run" not in board.cmdline()
            board.start()
            cut_the_setup_short(board.machine.console)
        wait_online(board, fleet, device)
        check_round(board.machine.console, fleet, device, kind)
        check_settings(board, key, device)
    finally:
        board.machine.power_cut()
        keep_log(tmp_path / "log", kind)


def cut_the_setup_short(console: Console) -> None:
    """Kill the first attempt of the set-up: the next one must end where this one would have."""
    console.wait_login(BIRTH_S)
    console.run("until systemctl show -p SubState covey-setup | grep -q start; do sleep 1; done", BIRTH_S)
    console.run(
        "systemctl kill -s KILL covey-setup; until systemctl show -p NRestarts covey-setup | grep -q =1; do "
        "sleep 1; done",
        BIRTH_S,
    )
    console.send("\n")


def wait_online(board: CardBoard, fleet: FleetOfBoards, device: str) -> None:
    """Wait for the signed birth of the device; a server with an authority takes no other."""
    console = board.machine.console
    console.wait_login(BIRTH_S)
    # The system is up while Covey is set up, which may wait for the server for days.
    console.run("until systemctl is-active -q multi-user.target; do sleep 1; done", BIRTH_S)
    assert console.run("test -e /opt/covey/set-up")[0] != 0
    # The wait is on the board: a server that is asked all the time takes the processor that emulates it.
    is_set_up = "until [ -e /opt/covey/set-up ]; do sleep 2; done"
    code, _ = console.run(f"timeout {BIRTH_S:.0f} sh -c '{is_set_up}'", BIRTH_S + 60)
    try:
        assert code == 0
        fleet.wait_state(device, "online", BIRTH_S)
    except AssertionError:
        said = console.run("journalctl -b --no-pager -o cat -u covey-setup -u covey-edge | tail -60")[1]
        raise AssertionError(f"{device} does not come online: {said}") from None


def check_round(console: Console, fleet: FleetOfBoards, device: str, job: str) -> None:
    """Let it train; its adapter, hashed on the board, must be the server's."""
    fleet.order(job, steps=2, rounds=2)
    sha256 = fleet.finish(job, 1800.0)["adapter_sha256"]
    path = f"/var/lib/covey/covey-state/adapters/{sha256}.bin"
    wait_for(lambda: console.run(f"test -e {path}")[0] == 0, "the last adapter on the board", 600.0)
    assert console.run(f"sha256sum {path}")[1].split()[0] == sha256
    assert fleet.device(device)["reports"] >= 2


def check_settings(board: CardBoard, key: Path, device: str) -> None:
    """Check what the operator asked for, and that nothing secret is left."""
    console = board.machine.console
    assert console.run("hostname")[1].strip() == device
    assert console.run("readlink -f /etc/localtime")[1].strip() == f"/usr/share/zoneinfo/{ZONE}"
    assert console.run("stat -c '%U %a' /var/lib/covey /var/lib/covey/edge-trust/key.pem")[1].split() == [
        *("covey", "750", "covey", "600")
    ]
    code, text = console.run("ls /opt/covey/join-token /opt/covey/env.tar /var/lib/covey/join-token 2>/dev/null")
    assert (code != 0, text) == (True, "")
    assert console.run("systemctl --failed --no-legend --plain")[1] == ""
    done = log_in(key, board.machine.hardware.ssh_port or 0, "sudo -n id -u && hostname")
    assert done.stdout.split() == ["0", device], done.stderr


def keep_log(folder: Path, kind: str) -> None:
    """Keep the serial line's log where COVEY_HIL_LOGS says."""
    if (place := os.environ.get("COVEY_HIL_LOGS")) and (folder / "serial.log").exists():
        shutil.copy(folder / "serial.log", f"{place}/{kind}.log")
