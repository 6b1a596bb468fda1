"""What a real fleet under load takes: sessions with TLS, certificates and signatures, through mosquitto, in rounds.

    python -m benchmarks.fleet [--devices 500] [--cohort 200] [--rounds 200] [--bundle DIR] [--quick]

mosquitto has the configuration that ``covey fleet mosquitto`` writes, ``covey serve`` is a process of its own, and one
asyncio process holds all devices. These have real certificates, sign and check what real devices do, and train in no
time: their scalars are drawn, and adapters are not fetched. So a round lasts as long as server, broker and the devices'
signatures take on the cores that they share, and ``round_overhead_s`` is this: from the first plan of a round that
arrives to the first of the next. ``device_cpu_s`` says how much of it the devices' process has computed.

A report is lost if the server has offered a round to a device and taken no report of it, or if a device that had the
plan was not told that its report was taken. RSS is that of the server's process,
read at the first plan of each round; its growth is that from round ``growth_from`` on, since caches fill before.

`make bench-load` runs it. The last line is one JSON object with devices, round_overhead_s, server_rss_growth_mb and
lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness.figures import spread
from benchmarks.harness.load_job import load_bundle, write_load_job
from benchmarks.harness.process_memory import status_mb
from benchmarks.harness.provenance import provenance
from benchmarks.workers.fleet_services import covey, mosquitto_version, services
from edge_runtime.network.address import BrokerAddress
from edge_runtime.protocol.signed import SERVER
from edge_runtime.signing.keys import KeyBook
from server.swarm.counts import Counts
from server.swarm.descriptors import allow_sessions
from server.swarm.entrance import Entrance
from server.swarm.members import make_members, names_of
from server.swarm.surroundings import Surroundings
from server.swarm.worker import live

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workers.fleet_services import Services
    from server.swarm.members import Member

_JOB = "load"
_ENDED = ("finished", "failed", "stopped")
_LOGINS_PER_S = 500.0


@dataclass
class Watched:
    """What is read when the first plan of each round arrives, and at the end.

    Attributes:
        at_s: time, monotonic seconds.
        rss_mb: the server's resident memory.
        cpu_s: CPU seconds of each process since its start.
        messages: messages up and down that the devices have had.
        payload_bytes: their payloads.
    """

    at_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    messages: list[int] = field(default_factory=list)
    payload_bytes: list[int] = field(default_factory=list)


class Watcher:
    """Reads clocks, memory and CPU time once for each round; see Watched."""

    def __init__(self, running: Services, counts: Counts) -> None:
        self.watched = Watched()
        self._counts, self._server_pid = counts, running.server_pid
        pids = {"server": running.server_pid, "broker": running.broker_pid, "device": None}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}

    def plan(self, round_index: int) -> None:
        """Read where this is the first plan of its round."""
        if round_index >= len(self.watched.at_s):
            self.read()

    def read(self) -> None:
        """Read everything now."""
        seen, counts = self.watched, self._counts
        seen.at_s.append(time.monotonic())
        seen.rss_mb.append(status_mb("VmRSS", self._server_pid))
        for name, process in self._processes.items():
            times = process.cpu_times()
            seen.cpu_s.setdefault(name, []).append(times.user + times.system)
        seen.messages.append(counts.messages_up + counts.messages_down)
        seen.payload_bytes.append(counts.bytes_up + counts.bytes_down)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line; None: this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=500, help="sessions (default: %(default)s)")
    parser.add_argument("--cohort", type=int, default=200, help="devices of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="rounds (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="what is trained (default: MiniLM, exported once to .covey)")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="longest time of all (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="40 devices, a cohort of 20, 5 rounds")
    args = parser.parse_args(argv)
    if args.quick:
        args.devices, args.cohort, args.rounds = 40, 20, 5
    if args.cohort > args.devices:
        parser.error(f"a cohort of {args.cohort} needs as many devices, and there are {args.devices}")
    results = measure(args.devices, args.cohort, args.rounds, args.bundle or load_bundle(), args.timeout_s)
    for key, value in results.items():
        print(f"{key:32} {value}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["bundle"] = settings["bundle"] and Path(settings["bundle"]).name
    print(json.dumps({**results, **provenance(**settings, broker=mosquitto_version())}))


def measure(devices: int, cohort: int, rounds: int, bundle: Path, timeout_s: float) -> dict[str, Any]:
    """Run a job with a fleet of real sessions, and return what it took.

    Args:
        devices: number of sessions.
        cohort: devices of a round.
        rounds: rounds of the job.
        bundle: what is trained.
        timeout_s: seconds after which the run is given up; what is missing then counts as lost.
    """
    allow_sessions(devices)
    with tempfile.TemporaryDirectory(prefix="covey-load-") as name:
        folder, state_dir = Path(name), Path(name) / "state"
        covey(state_dir, "fleet", "init", "--host", "127.0.0.1")
        members = make_members(state_dir, folder / "devices", names_of(devices))
        job = write_load_job(folder, bundle, devices, cohort, rounds, name=_JOB, accept_s=120.0)
        with services(folder, state_dir) as running:
            covey(state_dir, "job", "submit", str(job), "--bundle", str(bundle), "--allow-absent")
            counts = Counts()
            watched = asyncio.run(_run(running, members, counts, timeout_s))
            return _results(running, watched, counts, devices, rounds)


async def _run(running: Services, members: list[Member], counts: Counts, timeout_s: float) -> Watched:
    watcher, keys, until = Watcher(running, counts), KeyBook(), time.monotonic() + timeout_s
    keys.add(SERVER, running.trust.signing_key.public_key())
    address = BrokerAddress("127.0.0.1", running.broker_port, tls=True, username=None, password=None)
    entrance = Entrance(_LOGINS_PER_S)
    around = Surroundings(address, running.trust.fleet, [], counts, entrance, watcher.plan)
    size, log = 0, running.folder / "server.out"

    def is_over() -> bool:
        nonlocal size
        if time.monotonic() > until:
            return True
        with log.open() as file:  # only what is new, else each look would take longer than the one before
            file.seek(size)
            new = file.read()
        size += new.rfind("\n") + 1
        found = [json.loads(line) for line in new.splitlines(keepends=True) if line.endswith("\n")]
        return any(event["event"] == "job" and event["state"] in _ENDED for event in found)

    await live(members, keys, around, is_over)
    watcher.read()
    return watcher.watched


def _results(running: Services, watched: Watched, counts: Counts, devices: int, rounds: int) -> dict[str, Any]:
    events = running.events()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    offers = [(e["round"], device) for e in by_kind.get("round_opened", []) for device in e["devices"]]
    reports = [(e["round"], e["device"]) for e in by_kind.get("report", [])]
    closed = by_kind.get("round_closed", [])
    if len(watched.at_s) < 4:
        said = (running.folder / "server.err").read_text()
        raise SystemExit(f"the job ran no three rounds: {events[-3:]}\n{said[-4000:]}")
    round_s = _differences(watched.at_s[:rounds])
    first, last = min(20, rounds // 2), min(rounds, len(watched.rss_mb)) - 1
    elapsed_s = watched.at_s[last] - watched.at_s[0]
    final = {event["adapter_sha256"] for event in closed[-1:]}
    per_round = {f"{name}_cpu_s": spread(_differences(seconds[:rounds])) for name, seconds in watched.cpu_s.items()}
    check_s = counts.check_s / max(counts.checked, 1)
    return {
        "devices": devices,
        "devices_connected": len({e["device"] for e in by_kind.get("device", []) if e["state"] == "online"}),
        "round_overhead_s": spread(round_s),
        "server_rss_growth_mb": round(watched.rss_mb[last] - watched.rss_mb[first], 2),
        "lost": len(offers) - len(set(reports) & set(offers)) + counts.lost_reports,
        "rounds_closed": len(closed),
        "rounds_abandoned": len(by_kind.get("round_abandoned", [])),
        "offers_failed": len(by_kind.get("offer_failed", [])),
        "offers": len(offers),
        "plans_received": counts.plans,
        "reports_taken": len(reports),
        "lost_connections": counts.lost_connections,
        "messages_refused_by_devices": counts.refused,
        "final_adapter_sha256": next(iter(final), None),
        "final_adapter_proved": sum(counts.proved[sha256] for sha256 in final),
        "growth_from": first,
        "server_rss_mb": {"start": watched.rss_mb[0], "from": watched.rss_mb[first], "end": watched.rss_mb[last]},
        "server_rss_slope_mb_per_100_rounds": _slope(watched.rss_mb[first : last + 1]),
        "messages_per_s": round((watched.messages[last] - watched.messages[0]) / elapsed_s, 1),
        "messages_per_round": spread(_differences(watched.messages[:rounds])),
        "payload_bytes_per_round": spread(_differences(watched.payload_bytes[:rounds])),
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        **per_round,
        "device_sign_us": round(counts.sign_s / max(counts.messages_up, 1) * 1e6, 1),
        "device_check_us": round(check_s * 1e6, 1),
    }


def _differences(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(values)]


def _slope(values: Sequence[float]) -> float:
    """Return how much values grow in 100 steps, by least squares."""
    return round(100 * statistics.linear_regression(range(len(values)), values).slope, 2)


if __name__ == "__main__":
    main()
