"""Fleets with an authority, in real processes: a server that takes members only, and devices that have joined."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from fleets import Fleet, free_port, mosquitto, write_job
from tiny_models import reviews, write_rows

from edge_runtime.network.address import TlsFiles
from edge_runtime.network.tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle


class TrustedFleet(Fleet):
    """A fleet after ``covey fleet init``."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        super().__init__(root, bundle, free_port(), external=False)
        self.covey("fleet", "init", "--host", "127.0.0.1")
        self.said: dict[str, Any] = {}

    def open(self, *flags: str) -> Process:
        """Start ``covey serve``, at the ports of the first start."""
        ports = ("--mqtt-port", str(self.port), "--join-port", str(self.said.get("join_port", 0)))
        server = self.stay(*ports, "--http-port", str(self.said.get("http_port", 0)), *flags)
        self.said = server.wait_event("serving")
        return server

    def config(self, name: str) -> Path:
        return self.root / name / "edge.toml"

    def join(self, name: str, seed: int = 0, host: str = "127.0.0.1") -> Path:
        """Let a device join with a token, and return its configuration."""
        config = self.config(name)
        config.parent.mkdir(parents=True, exist_ok=True)
        write_rows(reviews(24 + 4 * seed, seed), config.with_name("data.jsonl"))
        file = self.root / f"{name}.token"
        file.unlink(missing_ok=True)
        self.covey("fleet", "token", name, "--file", str(file), "--url", f"https://{host}:{self.said['join_port']}")
        command = ["join", file.read_text().split()[1], "--config", str(config)]
        done = subprocess.run(
            [sys.executable, "-m", "edge_runtime.cli", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return config

    def start(self, name: str) -> Process:
        """Start ``covey-edge run`` of a device that has joined."""
        return self._start("edge_runtime.cli", ["run", "--config", str(self.config(name)), "--format", "json"], name)

    def submit(self, name: str, **fields: Any) -> dict[str, Any]:
        folder = self.root / "jobs" / name
        folder.mkdir(parents=True, exist_ok=True)
        job = write_job(folder, name=name, **fields)
        return self.covey("job", "submit", str(job), "--bundle", str(self.bundle.path))

    def tls_files(self, name: str) -> TlsFiles:
        trust = self.config(name).with_name("edge-trust")
        return TlsFiles(str(trust / "ca.pem"), str(trust / "cert.pem"), str(trust / "key.pem"))

    def context(self, name: str) -> ssl.SSLContext:
        return tls_context(self.tls_files(name))

    def states(self) -> dict[str, str]:
        return {one["device"]: one["state"] for one in self.covey("device", "list")["devices"]}


@contextlib.contextmanager
def broker(fleet: TrustedFleet) -> Iterator[dict[str, Any]]:
    """Write mosquitto's configuration anew and run it; yields what the command said, with the port that it got."""
    folder = fleet.root / "broker"
    said = fleet.covey("fleet", "mosquitto", "--out", str(folder), "--host", "127.0.0.1", "--port", str(fleet.port))
    text = (folder / "mosquitto.conf").read_text().replace("{", "{{").replace("}", "}}")
    with mosquitto(fleet.root / "run", text.replace(f"listener {fleet.port}", "listener {port}")) as port:
        yield {**said, "port": port}
