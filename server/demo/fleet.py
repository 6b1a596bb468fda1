"""Starts the demo's device processes: ``covey-edge run``, each with its own configuration, data and state."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import JobError
from server.samples.reviews import write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.manifest import Runtime
    from server.samples.reviews import Review

_STOP_S = 20.0
_CONNECT_S = 900.0


@dataclass(frozen=True)
class DeviceProcess:
    """One running device: its name, its process, and the files of its output and log."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    def final_adapter(self, timeout_s: float) -> str:
        """Wait until the device ends, and return the hash of the adapter that it ended on.

        Raises:
            JobError: the device did not end in time, or failed; the message has the end of its log.
        """
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            tail = "\n".join(self.log.read_text().splitlines()[-5:])
            raise JobError(f"device {self.name} ended with {code}:\n{tail}", f"its log is {self.log}")
        return str(json.loads(self.output.read_text())["adapter_sha256"])


def write_device(folder: Path, name: str, broker_port: int, rows: list[Review], engine: Runtime, training: str) -> Path:
    """Write a device's data and its edge.toml, and return the path of the latter; ``training`` as in edge.toml."""
    write_jsonl(rows, folder / "data.jsonl")
    config = folder / "edge.toml"
    config.write_text(
        f'name = "{name}"\n'
        f'broker = "mqtt://127.0.0.1:{broker_port}"\n'
        'state_dir = "state"\n'
        f'engine = "{engine}"\n'
        "threads = 1  # all devices of the demo share this machine\n"
        f"connect_timeout_s = {_CONNECT_S:g}  # the broker starts after them\n"
        f'training = "{training}"\n\n'
        '[data]\npath = "data.jsonl"\n'
    )
    return config


@contextlib.contextmanager
def start_devices(configs: dict[str, Path]) -> Iterator[list[DeviceProcess]]:
    """Start one process per configuration; processes that still run at the end of the block are stopped."""
    with contextlib.ExitStack() as stack:
        devices = []
        for name, config in configs.items():
            output, log = config.with_name("output.json"), config.with_name("log.txt")
            out, err = stack.enter_context(output.open("wb")), stack.enter_context(log.open("wb"))
            command = [
                sys.executable,
                "-m",
                "edge_runtime.cli",
                "run",
                "--config",
                str(config),
                "--until-finished",
                "--format",
                "json",
            ]
            process = subprocess.Popen(command, stdout=out, stderr=err)
            stack.callback(_stop, process)
            devices.append(DeviceProcess(name, process, output, log))
        yield devices


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
