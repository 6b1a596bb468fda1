"""``covey swarm`` as a process, and the jobs that it works for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fleets import write_job

if TYPE_CHECKING:
    from fleets import Fleet, Process


def swarm(fleet: Fleet, *flags: str, broker: str | None = None) -> Process:
    """Start a swarm; its broker is the fleet's unless another is given."""
    arguments = ["swarm", "--broker", broker or f"mqtt://127.0.0.1:{fleet.port}", *flags, "--format", "json"]
    return fleet._start("server.cli", arguments, "swarm")


def result(process: Process, code: int = 0) -> dict[str, Any]:
    """Wait for a swarm's end; return its one object."""
    assert process.popen.wait(300) == code, process.stderr.read_text()
    (line,) = process.stdout.read_text().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def submit(fleet: Fleet, name: str, devices: str = "tag:swarm", **fields: Any) -> None:
    """Submit a job to the fleet's server."""
    folder = fleet.root / "jobs" / name
    folder.mkdir(parents=True)
    job = write_job(folder, name=name, devices=devices, **fields)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path), "--allow-absent")


def ended(server: Process, job: str) -> str | None:
    """Return the state in which a job has ended; None: it has not."""
    states = [e["state"] for e in server.events() if e.get("event") == "job" and e["job"] == job]
    return states[-1] if states and states[-1] in ("finished", "failed", "stopped") else None
