"""``covey provision ssh`` run beside a server, for tests; and the packages of a board."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from server.flash.device_wheel import requirements

if TYPE_CHECKING:
    from pathlib import Path

    from ssh_board import Board
    from trusted import TrustedFleet


class Desk:
    """A server, and ``covey provision ssh`` run beside it."""

    def __init__(self, folder: Path, fleet: TrustedFleet, wheels: Path | None) -> None:
        self.folder, self.fleet, self.wheels = folder, fleet, wheels

    def command(self, board: Board, device: str, *flags: str, user: str = "keeper") -> list[str]:
        words = [sys.executable, "-m", "server.cli", "provision", "ssh", f"{user}@127.0.0.1", "--device", device]
        words += [*board.flags, "--state-dir", str(self.fleet.state_dir), "--format", "json", *flags]
        if "--uninstall" not in flags:
            words += ["--url", f"https://127.0.0.1:{self.fleet.said['join_port']}"]
            words += ["--wheels", str(self.wheels)] if self.wheels is not None else []
        return words

    def provision(
        self, board: Board, device: str, *flags: str, user: str = "keeper", code: int = 0, given: str = ""
    ) -> dict[str, Any]:
        command = self.command(board, device, *flags, user=user)
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == code, done.stderr[-3000:]
        self.said = done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        return found


def board_wheels(folder: Path) -> Path:
    """Fetch the packages of a board with this machine's Python into a folder."""
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", version, "-d", str(folder)]
    for name in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "linux"):
        command += ["--platform", f"{name}_x86_64"]
    subprocess.run([*command, *(line for line in requirements() if ";" not in line), "pip"], check=True)
    return folder
