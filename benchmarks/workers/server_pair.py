"""Servers that wait for each other's end, with mosquitto and real devices, each a process; servers are killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.workers.fleet_services import covey
from benchmarks.workers.postgres_server import free_port
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.topics import hello_topic, topic_for
from server.samples.toml_text import toml
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import attempts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FLEET, JOB = "default", "job"
_STARTS_S, _TAKES_OVER_S = 120.0, 120.0


@dataclass
class Standby:
    """A server's process, and the file of its events."""

    popen: subprocess.Popen[bytes]
    out: Path

    def has_said(self, key: str) -> bool:
        """Whether it has printed an event with this key: ``standby`` when it waits, ``api`` when it serves."""
        lines = self.out.read_text().splitlines(keepends=True)
        return any(key in json.loads(line) for line in lines if line.endswith("\n"))


class ServerPair:
    """A fleet on one machine: one server is at work, the others wait.

    Args:
        root: a folder for everything.
        bundle: what is trained.
        ledger: address of an empty PostgreSQL database.
        rows: held-out rows, and each device's own by its name.
    """

    def __init__(self, root: Path, bundle: Path, ledger: str, rows: tuple[list[Any], dict[str, list[Any]]]) -> None:
        self.root, self._bundle, self._ledger, (self._held_out, self._own) = root, bundle, ledger, rows
        self.state_dir = root / "server"
        self._port, self._http_port, self._started = free_port(), free_port(), 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._epoch: str | None = None

    def start(self, name: str, command: Sequence[str]) -> Standby:
        """Start a process; its output goes to files."""
        self._started += 1
        out = self.root / f"{name}.{self._started}.out"
        with out.open("wb") as stdout, out.with_suffix(".err").open("wb") as stderr:
            popen = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        self._processes.append(popen)
        return Standby(popen, out)

    def start_broker(self) -> MqttTransport:
        """Start mosquitto; return a connection that hears what the servers say."""
        config = self.root / "mosquitto.conf"
        config.write_text(f"listener {self._port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nuser root\n")
        self.start("broker", ["/usr/sbin/mosquitto", "-c", str(config)])
        ear = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{self._port}"), "ear", keep_session=False)
        for topic in (hello_topic(FLEET), topic_for(FLEET, "+", "plan"), topic_for(FLEET, "+", "report/ack")):
            ear.subscribe(topic)
        return ear

    def stand_by(self) -> Standby:
        """Start a server; return when it waits or serves."""
        options = {
            "--state-dir": str(self.state_dir),
            "--broker": f"mqtt://127.0.0.1:{self._port}",
            "--http-port": str(self._http_port),
            "--ledger": self._ledger,
            "--threads": "1",
            "--format": "json",
        }
        words = [word for pair in options.items() for word in pair]
        server = self.start("server", [sys.executable, "-m", "server.cli", "serve", *words, "--standby"])
        wait(lambda: server.has_said("standby"), _STARTS_S)
        return server

    def start_devices(self) -> None:
        """Start the devices."""
        for name, rows in self._own.items():
            folder = self.root / name
            folder.mkdir()
            write_rows(folder / "data.jsonl", rows)
            head = toml({"name": name, "broker": f"mqtt://127.0.0.1:{self._port}", "threads": 1})
            (folder / "edge.toml").write_text(f'{head}[data]\npath = "data.jsonl"\n')
            command = [sys.executable, "-m", "edge_runtime.cli", "run", "--config", str(folder / "edge.toml")]
            self.start(name, command)

    def submit(self, rounds: int) -> None:
        """Submit the job: every round is of all devices."""
        write_rows(self.root / "held-out.jsonl", self._held_out)
        devices = len(self._own)
        fields = {"name": JOB, "eval_file": "held-out.jsonl", "rounds": rounds, "steps": 2, "batch_size": 4}
        fields |= {"min_devices": devices, "min_reports": devices, "max_attempts": 1000, "deadline_s": 60.0}
        path = self.root / "job.toml"
        path.write_text(f"{toml(fields)}[step]\n{toml({'back_perturbations': 4, 'learning_rate': 0.05, 'eps': 0.01})}")
        covey(self.state_dir, "job", "submit", str(path), "--bundle", str(self._bundle))

    def closed(self) -> list[tuple[int, str, int]]:
        """Return each closed round's index, adapter and number of reports, in order."""
        with contextlib.closing(Ledger(self.state_dir / LEDGER_FILE, read_only=True)) as ledger:
            attempts = attempts_of(ledger, JOB)
        done = [attempt for attempt in attempts if attempt.state == "aggregated"]
        return [(attempt.index, str(attempt.result_sha256), attempt.reports or 0) for attempt in done]

    def hear(self, ear: MqttTransport) -> None:
        """Take in what the servers have said so far."""
        while (event := ear.receive(0)) is not None:
            if isinstance(event, Message):
                self._hears_hello(event)

    def _hears_hello(self, event: Message) -> bool:
        """Take in a server's hello; return whether it was one. An empty one only asks whether it may be published."""
        if event.topic != hello_topic(FLEET):
            return False
        if event.payload:
            self._epoch = decode_message(event.payload, Hello).epoch
        return True

    def takes_over(self, ear: MqttTransport, is_over: Callable[[], bool]) -> float | None:
        """Return when another server than the last one heard has spoken to a device; None: it had nothing to say.

        Args:
            ear: hears it.
            is_over: whether nothing is left to say.

        Raises:
            TimeoutError: nobody has taken over.
        """
        before, until = self._epoch, time.monotonic() + _TAKES_OVER_S
        while time.monotonic() < until:
            event = ear.receive(0.5)
            if isinstance(event, Message) and not self._hears_hello(event) and self._epoch != before:
                return time.monotonic()
            if event is None and self._epoch != before and is_over():
                return None
        raise TimeoutError(f"no server has taken over in {_TAKES_OVER_S:g} s; see {self.root}")

    def stop(self) -> None:
        """Kill what still runs."""
        for popen in self._processes:
            if popen.poll() is None:
                popen.kill()
            popen.wait()


@contextlib.contextmanager
def server_pair(
    root: Path, bundle: Path, ledger: str, rows: tuple[list[Any], dict[str, list[Any]]]
) -> Iterator[ServerPair]:
    """Make a ServerPair in a new folder, and end all of its processes after the block; see ServerPair."""
    root.mkdir()
    made = ServerPair(root, bundle, ledger, rows)
    try:
        yield made
    finally:
        made.stop()


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write a file of rows."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def wait(condition: Callable[[], bool], limit_s: float) -> None:
    """Wait until a condition is true: other processes offer nothing to wait on.

    Raises:
        TimeoutError: it is not.
    """
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"a process did not get on in {limit_s:g} s")
        time.sleep(0.05)
