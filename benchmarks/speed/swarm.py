"""What a server and a broker take of ``covey swarm``: 1,000 sessions and more, rounds of 1,000, a server that restarts.

    python -m benchmarks.speed.swarm [--sizes 1000,2000,5000] [--cohort 1000] [--rounds 3] [--plain] [--bundle DIR]

For each size mosquitto, ``covey serve`` and ``covey swarm`` are processes of their own, with TLS, certificates and
signatures unless ``--plain`` is given. The sessions train nothing, so a round lasts as long as server, broker and
sessions take on the cores that they share. A round's time is that from one opened round to the next, as the server's
events show them; the server's CPU seconds are read at the same moments. After the job the server is stopped and started
anew: ``presence_after_restart_s`` is the time from the start of its process until it knows all sessions again.

``slope`` is that of the server's CPU time a device and round over the number of sessions, both as logarithms: 0 means
that the work for a device does not depend on the size of the fleet.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.harness.load_job import load_bundle, write_load_job
from benchmarks.harness.process_memory import status_mb
from benchmarks.harness.provenance import provenance
from benchmarks.workers.fleet_services import broker, covey, mosquitto_version, server
from server.swarm.descriptors import allow_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_JOB = "swarm-load"
_ENDED = ("finished", "failed", "stopped")
_LOOK_S = 0.05
_RESTART_S = 300.0


@dataclass
class Watched:
    """A server's events as they come, and what its process had taken at each.

    Attributes:
        path: file of its events.
        pid: its process.
        opened_s: when each round was opened, monotonic seconds.
        cpu_s: CPU seconds of the server at these moments.
        rss_mb: its resident memory at these moments.
        online: devices that are here.
        reports: reports that were taken.
        offers_failed: offers that brought no report.
        ended: state in which the job has ended; None: it has not.
    """

    path: Path
    pid: int
    opened_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    online: set[str] = field(default_factory=set)
    reports: int = 0
    offers_failed: int = 0
    ended: str | None = None
    _read: int = 0

    def look(self) -> None:
        """Take in what is new."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        end = new.rfind(b"\n") + 1
        self._read += end
        for line in new[:end].splitlines():
            self._take(json.loads(line))

    def mark(self) -> None:
        """Read clock, CPU time and memory."""
        times = psutil.Process(self.pid).cpu_times()
        self.opened_s.append(time.monotonic())
        self.cpu_s.append(times.user + times.system)
        self.rss_mb.append(status_mb("VmRSS", self.pid))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "round_opened":
            self.mark()
        elif kind == "report":
            self.reports += 1
        elif kind == "offer_failed":
            self.offers_failed += 1
        elif kind == "device" and event["state"] in ("online", "busy"):
            self.online.add(event["device"])
        elif kind == "job" and event["state"] in _ENDED:
            self.ended = event["state"]
            self.mark()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line; None: this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,2000,5000", help="numbers of sessions (default: %(default)s)")
    parser.add_argument("--cohort", type=int, default=1000, help="reports of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=300.0, help="logins a second (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="without TLS and signatures")
    parser.add_argument("--bundle", type=Path, help="what the job trains (default: MiniLM, exported once to .covey)")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="longest time of a size (default: %(default)s)")
    args = parser.parse_args(argv)
    sizes = [int(size) for size in args.sizes.split(",")]
    results = measure(sizes, args.cohort, args.rounds, args.bundle, args.timeout_s, plain=args.plain, rate=args.rate)
    for one in results["by_size"]:
        print(json.dumps(one))
    print(f"slope of the server's CPU time a device and round over sessions: {results['slope']}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["bundle"] = settings["bundle"] and Path(settings["bundle"]).name
    print(json.dumps({**results, **provenance(**settings, broker=mosquitto_version())}))


def measure(
    sizes: Sequence[int] = (1000, 2000),
    cohort: int = 1000,
    rounds: int = 3,
    bundle: Path | None = None,
    timeout_s: float = 900.0,
    *,
    plain: bool = False,
    rate: float = 300.0,
) -> dict[str, Any]:
    """Run each size, and return the figures of all, and those of the largest under the keys of benchmarks.scale.

    Args:
        sizes: numbers of sessions, ascending.
        cohort: reports of a round; of fewer sessions, all of them.
        rounds: rounds of the job.
        bundle: what it trains; None: MiniLM, exported once.
        timeout_s: seconds after which a size is given up.
        plain: without TLS and signatures.
        rate: logins a second.

    Raises:
        SystemExit: a job did not finish.
    """
    trained = bundle or load_bundle()
    found = [
        _measure_size(size, min(size, cohort), rounds, trained, timeout_s, plain=plain, rate=rate) for size in sizes
    ]
    largest = found[-1]
    keys = (
        "devices_connected",
        "reports_per_s",
        "round_overhead_s_per_1000",
        "rss_mb_per_1000",
        "presence_after_restart_s",
        "server_rss_mb",
        "lost",
    )
    slope = None
    if len(found) > 1:
        rss = statistics.linear_regression(sizes, [one["server_rss_mb"] for one in found])
        largest["rss_mb_per_1000"] = round(1000 * rss.slope, 2)
        work = [math.log(one["server_cpu_ms_per_device_and_round"]) for one in found]
        slope = round(statistics.linear_regression([math.log(size) for size in sizes], work).slope, 3)
    return {**{key: largest[key] for key in keys}, "slope": slope, "by_size": found}


def _measure_size(
    devices: int, cohort: int, rounds: int, bundle: Path, timeout_s: float, *, plain: bool, rate: float
) -> dict[str, Any]:
    allow_sessions(devices)
    until = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(prefix="covey-swarm-") as name:
        folder = Path(name)
        state_dir = folder / "state"
        members: list[str] = []
        if not plain:
            covey(state_dir, "fleet", "init", "--host", "127.0.0.1")
            members = ["--members", str(folder / "members")]
            covey(state_dir, "swarm", "--make-members", "--devices", str(devices), *members)
        job = write_load_job(folder, bundle, devices, cohort, rounds, name=_JOB, over_selection=1.0, accept_s=300.0)
        with broker(folder, None if plain else state_dir) as (port, broker_pid):
            address = f"{'mqtt' if plain else 'mqtts'}://127.0.0.1:{port}"
            command = ["--devices", str(devices), "--broker", address, "--rate", str(rate), *members]
            with server(folder, state_dir, address) as pid:
                empty_mb = status_mb("VmRSS", pid)
                covey(state_dir, "job", "submit", str(job), "--bundle", str(bundle), "--allow-absent")
                watched = Watched(folder / "server.out", pid)
                with contextlib.ExitStack() as stack:
                    running = stack.enter_context(_swarm(folder, command))
                    _watch(watched, lambda: watched.ended is not None, until, folder)
                    idle = _idle_cpu_share(pid)
                    broker_mb = status_mb("VmRSS", broker_pid)
                    swarm_mb = _swarm_mb(running.pid)
                    held = stack.pop_all()
            with held:
                began = time.monotonic()
                with server(folder, state_dir, address, "server-2") as pid:
                    again = Watched(folder / "server-2.out", pid)
                    _watch(again, lambda: len(again.online) >= devices, began + _RESTART_S, folder)
                    presence_s = time.monotonic() - began
                    again.mark()
                    running.send_signal(signal.SIGINT)
                    running.wait(120)
        seen = json.loads((folder / "swarm.out").read_text())
    return {
        **_figures(watched, devices, cohort, rounds, empty_mb),
        "devices_connected": seen["devices_connected"],
        "all_connected_s": seen["all_connected_s"],
        "presence_after_restart_s": round(presence_s, 2),
        "server_rss_mb_after_restart": again.rss_mb[-1],
        "server_cpu_s_of_restart": round(again.cpu_s[-1], 2),
        "server_cpu_share_at_rest": idle,
        "broker_rss_mb": broker_mb,
        "swarm_rss_mb": swarm_mb,
        "lost": seen["lost_reports"] + watched.offers_failed + rounds * cohort - watched.reports,
        "lost_connections": seen["lost_connections"],
        "round_trip_s": seen["round_trip_s"],
        "bytes_up": seen["bytes_up"],
        "bytes_down": seen["bytes_down"],
    }


def _figures(watched: Watched, devices: int, cohort: int, rounds: int, empty_mb: float) -> dict[str, Any]:
    """Return what the rounds took, without the last one: it ends with the final adapter for the whole fleet."""
    last = max(rounds - 1, 1)
    seconds = statistics.median(_steps(watched.opened_s)[:last])
    cpu_s = statistics.median(_steps(watched.cpu_s)[:last])
    rss_mb = max(watched.rss_mb)
    return {
        "devices": devices,
        "cohort": cohort,
        "rounds": rounds,
        "round_s": round(seconds, 3),
        "reports_per_s": round(cohort / seconds, 1),
        "round_overhead_s_per_1000": round(1000 * seconds / cohort, 3),
        "server_cpu_s_of_round": round(cpu_s, 3),
        "server_cpu_ms_per_device_and_round": round(1000 * cpu_s / cohort, 3),
        "server_rss_mb": rss_mb,
        "rss_mb_per_1000": round(1000 * (rss_mb - empty_mb) / devices, 2),
    }


def _steps(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(values)]


def _idle_cpu_share(pid: int) -> float:
    """Return the share of a core that a server takes of which nothing is asked."""
    process = psutil.Process(pid)
    process.cpu_percent()
    return round(process.cpu_percent(interval=3.0) / 100, 3)


def _swarm_mb(pid: int) -> float:
    """Return the resident memory of a swarm's processes, in MB."""
    children = psutil.Process(pid).children(recursive=True)
    return round(sum(status_mb("VmRSS", one) for one in (pid, *(child.pid for child in children))), 1)


@contextlib.contextmanager
def _swarm(folder: Path, flags: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "swarm.out").open("wb") as out, (folder / "swarm.err").open("wb") as err:
        command = [sys.executable, "-m", "server.cli", "swarm", *flags, "--format", "json"]
        process = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _watch(watched: Watched, is_over: Callable[[], bool], until: float, folder: Path) -> None:
    while True:
        watched.look()
        if is_over():
            return
        if time.monotonic() > until:
            said = [(folder / name).read_text()[-1500:] for name in ("swarm.err", "server.err")]
            raise SystemExit(f"given up: {watched.reports} reports, {len(watched.online)} online\n" + "\n".join(said))
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
