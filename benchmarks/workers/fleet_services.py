"""What a fleet under load connects to: mosquitto as Covey configures it, and ``covey serve``, each a process."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.trust.folder import open_trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.trust.folder import Trust

_PATH = f"{os.environ['PATH']}:/usr/sbin"
"""Where mosquitto is looked for: Debian keeps it where users do not look."""
_STARTS_S = 60.0
_UNLIMITED = "max_queued_messages 0\nmax_inflight_messages 100\n"
"""Messages wait for slow readers without a limit in number, as ``covey fleet mosquitto`` writes it."""


@dataclass(frozen=True)
class Services:
    """A fleet's broker and server.

    Attributes:
        folder: holds their files; ``server.out`` has the server's events.
        trust: the fleet's keys.
        broker_port: mosquitto's port.
        broker_pid: mosquitto.
        server_pid: ``covey serve``.
    """

    folder: Path
    trust: Trust
    broker_port: int
    broker_pid: int
    server_pid: int

    def events(self) -> list[dict[str, Any]]:
        """Return the events that the server has printed so far."""
        lines = (self.folder / "server.out").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def covey(state_dir: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of ``covey`` on a state directory, and return the object that it prints.

    Raises:
        RuntimeError: the command failed; has what it said.
    """
    command = [sys.executable, "-m", "server.cli", *arguments, "--state-dir", str(state_dir), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"covey {' '.join(arguments)} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@contextlib.contextmanager
def services(folder: Path, state_dir: Path) -> Iterator[Services]:
    """Run mosquitto with the configuration of ``covey fleet mosquitto``, and ``covey serve``, until the block ends."""
    with broker(folder, state_dir) as (port, broker_pid), server(folder, state_dir, f"mqtts://127.0.0.1:{port}") as pid:
        yield Services(folder, open_trust(state_dir), port, broker_pid, pid)


@contextlib.contextmanager
def broker(folder: Path, state_dir: Path | None) -> Iterator[tuple[int, int]]:
    """Run mosquitto until the block ends; yield its port and its process.

    Args:
        folder: gets its files.
        state_dir: of a server after ``covey fleet init``, for whose members it is; None: it lets everybody in.
    """
    port = _free_port()
    files = folder / "broker"
    config = files / "mosquitto.conf"
    if state_dir is None:
        files.mkdir(parents=True)
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n{_UNLIMITED}")
    else:
        covey(state_dir, "fleet", "mosquitto", "--out", str(files), "--host", "127.0.0.1", "--port", str(port))
    with config.open("a") as file:
        file.write(f"user {getpass.getuser()}\n")  # started by root, it would change to a user that may not read this
    with _running([_mosquitto(), "-c", str(config)], files) as mosquitto:
        _wait(lambda: _listens(port), mosquitto, files.with_suffix(".err"))
        yield port, mosquitto.pid


@contextlib.contextmanager
def server(folder: Path, state_dir: Path, address: str, output: str = "server") -> Iterator[int]:
    """Run ``covey serve`` until the block ends; yield its process once it serves.

    Args:
        folder: gets ``<output>.out`` with its events, and ``<output>.err``.
        state_dir: its state directory.
        address: the broker.
        output: see ``folder``.
    """
    command = [sys.executable, "-m", "server.cli", "serve", "--state-dir", str(state_dir), "--listen", "127.0.0.1"]
    command += ["--broker", address, "--http-port", "0", "--join-port", "0", "--threads", "1", "--format", "json"]
    with _running(command, folder / output) as process:
        said = folder / f"{output}.out"
        _wait(lambda: '"serving"' in said.read_text(), process, folder / f"{output}.err")
        yield process.pid


def mosquitto_version() -> str:
    """Return what mosquitto calls itself, for example ``mosquitto version 2.0.21``."""
    said = subprocess.run([_mosquitto(), "-h"], capture_output=True, text=True, check=False)
    return (said.stdout.splitlines() or [""])[0]


def _mosquitto() -> str:
    binary = shutil.which("mosquitto", path=_PATH)
    if binary is None:
        raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
    return binary


@contextlib.contextmanager
def _running(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process whose output goes to ``<output>.out`` and ``<output>.err``; it is ended after the block."""
    with output.with_suffix(".out").open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:  # noqa: ANN401
    until = time.monotonic() + _STARTS_S
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"{process.args!r} did not start:\n{log.read_text()}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
