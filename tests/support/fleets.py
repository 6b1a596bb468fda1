"""Fleets for tests: real brokers, a server in a process or thread, devices in processes or threads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_models import reviews, write_rows

from edge_runtime.agent.config import EdgeConfig
from edge_runtime.data.examples import DataConfig
from server.samples.toml_text import toml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

_PATH = f"{os.environ['PATH']}:/usr/sbin"
"""Where mosquitto is looked for: Debian keeps it where users do not look."""
JOB: dict[str, Any] = {"name": "job", "eval_file": "test.jsonl", "rounds": 3, "steps": 2, "batch_size": 4}
STEP: dict[str, Any] = {"back_perturbations": 4, "learning_rate": 0.05, "eps": 0.01}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 240.0) -> Any:
    """Return the first true value of a condition, polled every 20 ms: other processes offer nothing to wait on."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.02)
    return value


RowsOf = Callable[[int, int], list[dict[str, str]]]
"""Makes rows from their number and a seed."""


def write_job(folder: Path, step: dict[str, Any] | None = None, *, rows_of: RowsOf = reviews, **fields: Any) -> Path:
    """Write ``job.toml`` and its held-out rows; a dictionary among the fields is a table."""
    write_rows(rows_of(40, 99), folder / "test.jsonl")
    path = folder / "job.toml"
    tables = {name: value for name, value in fields.items() if isinstance(value, dict)}
    plain = {name: value for name, value in fields.items() if name not in tables}
    tables["step"] = STEP | step if step else STEP
    path.write_text(toml(JOB | plain) + "".join(f"[{name}]\n{toml(table)}" for name, table in tables.items()))
    return path


def write_edge(folder: Path, name: str, port: int, seed: int, *, rows_of: RowsOf = reviews, **fields: Any) -> Path:
    """Write ``edge.toml`` and private rows for a device."""
    write_rows(rows_of(24 + 4 * seed, seed), folder / "data.jsonl")
    path = folder / "edge.toml"
    broker = fields.pop("broker", f"mqtt://127.0.0.1:{port}")
    tls, signing = fields.pop("tls", None), fields.pop("signing", None)
    tables = {table: fields.pop(table) for table in ("predict", "updates") if table in fields}
    head = {"name": name, "broker": broker, "threads": 1, **fields}
    path.write_text(toml(head) + '[data]\npath = "data.jsonl"\n' + ("[tls]\n" + toml(tls) if tls is not None else ""))
    with path.open("a") as file:
        file.writelines(f"[{table}]\n{toml(values)}" for table, values in tables.items())
    if signing is not None:
        with path.open("a") as file:
            file.write("[signing]\n" + toml(signing))
    return path


@dataclass
class Process:
    """A ``covey`` or ``covey-edge`` process; stdout and stderr are files."""

    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def events(self) -> list[dict[str, Any]]:
        """Return the JSON lines printed so far."""
        lines = self.stdout.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_event(self, kind: str, count: int = 1, timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait until the server has printed an event of a kind, or several."""

        def found() -> dict[str, Any] | None:
            matching = [event for event in self.events() if event.get("event") == kind]
            assert self.popen.poll() is None or len(matching) >= count, self.stderr.read_text()
            return matching[count - 1] if len(matching) >= count else None

        return dict(wait_for(found, f"event {kind}", timeout_s))

    def result(self, timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait for a good end and return the last line's object."""
        assert self.popen.wait(timeout_s) == 0, self.stderr.read_text()
        return self.events()[-1]


class Fleet:
    """The processes of one test; stop kills those that still run.

    Args:
        root: a folder for everything.
        bundle: what is trained.
        port: the broker's port.
        external: whether the broker is another process than the server.
    """

    def __init__(self, root: Path, bundle: Bundle, port: int, *, external: bool) -> None:
        self.root, self.bundle, self.port, self.external = root, bundle, port, external
        self.processes: list[Process] = []
        self.state_dir = root / "server"
        self.device_pythons: dict[str, str] = {}  # by name of the device; the others have this process's

    def prefix(self, name: str) -> list[str]:
        """Return the words before the command of a process: none here."""
        del name
        return []

    def _start(self, module: str, arguments: list[str], name: str) -> Process:
        folder = self.root / "out"
        folder.mkdir(exist_ok=True)
        run = sum(p.stdout.name.startswith(f"{name}.") for p in self.processes)
        stdout, stderr = folder / f"{name}.{run}.out", folder / f"{name}.{run}.err"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with stdout.open("wb") as out, stderr.open("wb") as err:
            popen = subprocess.Popen(
                [*self.prefix(name), self.device_pythons.get(name, sys.executable), "-m", module, *arguments],
                stdout=out,
                stderr=err,
                env=environment,
            )
        process = Process(popen, stdout, stderr)
        self.processes.append(process)
        return process

    def serve(self, job: Path, *flags: str) -> Process:
        """Start ``covey run``."""
        return self._server("run", "--bundle", str(self.bundle.path), "--job", str(job), flags=flags)

    def stay(self, *flags: str) -> Process:
        """Start ``covey serve``."""
        return self._server("serve", flags=flags)

    def covey(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command that speaks to the server, check its exit code, and return its last line's object."""
        command = [sys.executable, "-m", "server.cli", *arguments, "--state-dir", str(self.state_dir)]
        done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command that speaks to the server, and return the objects of its lines; empty where it fails."""
        command = [sys.executable, "-m", "server.cli", *arguments, "--state-dir", str(self.state_dir)]
        done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False, timeout=300)
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def _server(self, *command: str, flags: tuple[str, ...]) -> Process:
        broker = ["--broker", f"mqtt://127.0.0.1:{self.port}"] if self.external else ["--mqtt-port", str(self.port)]
        arguments = [
            *command,
            "--listen",
            "127.0.0.1",
            "--http-port",
            "0",
            "--state-dir",
            str(self.state_dir),
            "--threads",
            "1",
            "--format",
            "json",
            *(flags or broker),
        ]
        return self._start("server.cli", arguments, "server")

    def device(self, name: str, seed: int, *, stays: bool = False, **fields: Any) -> Process:
        """Start ``covey-edge run``; the same name again is the same device after a restart."""
        config = write_edge(self.root / name, name, self.port, seed, **fields)
        arguments = ["run", "--config", str(config), "--format", "json", *([] if stays else ["--until-finished"])]
        return self._start("edge_runtime.cli", arguments, name)

    def stop(self) -> None:
        """Kill the processes that still run."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait()


def start_mosquitto(config: Path, prefix: list[str] | None = None) -> subprocess.Popen[bytes]:
    """Start mosquitto with a configuration; its log is beside it, and goes on where it was."""
    binary = shutil.which("mosquitto", path=_PATH)
    assert binary is not None, "mosquitto is not installed"
    with config.with_name("mosquitto.log").open("ab") as log:
        return subprocess.Popen([*(prefix or []), binary, "-c", str(config)], stdout=log, stderr=log)


@contextlib.contextmanager
def mosquitto(folder: Path, config: str = "") -> Iterator[int]:
    """Run mosquitto on a free port; ``config`` replaces the plain listener ({port} is filled in)."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mosquitto.conf"
    plain = "listener {port} 127.0.0.1\nallow_anonymous true\n"
    path.write_text(
        (config or plain).format(port=port) + "max_queued_messages 0\nuser root\n"
    )  # else it cannot read tmp_path
    process = start_mosquitto(path)

    def listening() -> bool:
        assert process.poll() is None, (folder / "mosquitto.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_for(listening, "mosquitto")
        yield port
    finally:
        process.terminate()
        process.wait()


def has_mosquitto() -> bool:
    """Whether mosquitto is installed."""
    return shutil.which("mosquitto", path=_PATH) is not None


def edge_configs(root: Path, n: int) -> list[EdgeConfig]:
    configs = []
    for index in range(n):
        write_rows(reviews(8 + index, seed=index), root / f"{index}.jsonl")
        state = str(root / f"device-{index}")
        data = DataConfig(str(root / f"{index}.jsonl"))
        configs.append(
            EdgeConfig(name=f"device-{index}", broker="mqtt://unused", data=data, threads=1, state_dir=state)
        )
    return configs
