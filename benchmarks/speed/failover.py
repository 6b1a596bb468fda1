"""How soon a standby goes on where the server at work was killed, and what a round costs with PostgreSQL.

    python -m benchmarks.speed.failover [--kills 20] [--rounds 60] [--devices 50] [--repeats 5]

Servers, three devices and mosquitto are processes, with one ledger in a PostgreSQL of the benchmark's own. The server
at work is killed with -9 at a random moment of a job, and time runs until a device hears a plan or an acknowledgement
of the other one. Jobs are run until there were enough kills; each has to end on the adapter of one that nobody
disturbed, with every round closed once.

The ratio is of the server's time for a round of devices that train in no time (see rounds.py), with the ledger in
PostgreSQL and in a file of SQLite, in turn; both sync what they commit.

`make bench-failover` runs it. The last line is one JSON object with failover_s (median, worst) and
postgres_over_sqlite_round.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.figures import ratios
from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.workers.fleet_services import mosquitto_version
from benchmarks.workers.instant_fleet import InstantFleet, run_rounds
from benchmarks.workers.postgres_server import postgres_server
from benchmarks.workers.server_pair import server_pair, wait
from edge_runtime.bundle.folder import open_bundle
from server.demo.recipes import RECIPES
from server.storage.ledger_address import keep_address

if TYPE_CHECKING:
    from benchmarks.workers.postgres_server import PostgresServer
    from benchmarks.workers.server_pair import ServerPair

BOUND_S = 15.0
"""Within which a standby is to take over."""
_NAMES = ("device-1", "device-2", "device-3")
_WORDS = ("film", "plot", "actor", "scene", "good", "bad", "great", "terrible", "slow", "fast", "never", "ever")
_JOB_S = 1200.0
_TIMED_ROUNDS, _PARAMETERS = 8, 147_456
_PAUSE_S = 2.0
"""A server is killed up to this long after it has taken over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of the server at work (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of each job (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=50, help="devices of a timed round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of timed runs (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="what is trained (default: MiniLM, exported once to .covey)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    args = parser.parse_args()
    results = measure(args.bundle, args.kills, args.rounds, args.devices, args.repeats, args.seed)
    for key, value in results.items():
        print(f"{key:32} {value}")
    print(f"{'bound':32} {'within' if results['failover_s']['worst'] <= BOUND_S else 'OVER'} {BOUND_S} s")
    settings = vars(args) | {"bundle": args.bundle and args.bundle.name}
    print(json.dumps({**results, **provenance(**settings, broker=mosquitto_version())}))


def measure(
    bundle: Path | None = None,
    kills: int = 20,
    rounds: int = 60,
    devices: int = 50,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure both; see the file's first lines.

    Args:
        bundle: what is trained; None: MiniLM.
        kills: kills of the server at work, at least.
        rounds: rounds of each job.
        devices: devices of a round whose server's time is taken.
        repeats: pairs of runs with both databases.
        seed: of the moments of the kills.

    Returns:
        ``failover_s`` (median and worst), ``failover_kills``, ``failover_jobs``, ``failover_adapters`` (distinct ones:
        1), ``failover_rounds_wrong`` (lost, counted twice, or without a report: 0), ``postgres_over_sqlite_round``.

    Raises:
        SystemExit: PostgreSQL or mosquitto is not installed.
        TimeoutError: nobody has taken over.
    """
    found = bundle or export_once(
        sample_model("minilm"), ROOT / ".covey" / "load" / "bundle", *RECIPES["minilm"].export_flags
    )
    with tempfile.TemporaryDirectory(prefix="covey-failover-") as folder, postgres_server() as postgres:
        results = _failovers(Path(folder), found, postgres, kills, rounds, np.random.Generator(np.random.PCG64(seed)))
        return {**results, "postgres_over_sqlite_round": _ratio(Path(folder), postgres, devices, repeats)}


def _failovers(
    folder: Path, bundle: Path, postgres: PostgresServer, kills: int, rounds: int, rng: np.random.Generator
) -> dict[str, Any]:
    rows = _rows(open_bundle(bundle).manifest.task.labels)
    seconds: list[float] = []
    ended: list[list[tuple[int, str, int]]] = []
    while not ended or len(seconds) < kills:
        name = f"job{len(ended)}"
        with server_pair(folder / name, bundle, postgres.new_database(name), rows) as pair:
            seconds += _disturbed(pair, rounds, rng if ended else None)
            ended.append(pair.closed())
        print(f"job {len(ended)}: {len(seconds)} kills so far")
    right = [(index, len(_NAMES)) for index in range(rounds)]
    return {
        "failover_s": {"median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)},
        "failover_kills": len(seconds),
        "failover_jobs": len(ended),
        "failover_adapters": len({job[-1][1] for job in ended}),
        "failover_rounds_wrong": sum(
            len(set(right) ^ {(index, reports) for index, _, reports in job}) + max(0, len(job) - rounds)
            for job in ended
        ),
    }


def _disturbed(pair: ServerPair, rounds: int, rng: np.random.Generator | None) -> list[float]:
    """Run a job to its end; return the seconds of each failover. None: nobody is killed."""
    seconds = []
    ear = pair.start_broker()

    def is_over() -> bool:
        return len(pair.closed()) >= rounds

    try:
        at_work = pair.stand_by()
        wait(lambda: at_work.has_said("api"), _JOB_S)
        waiting = None if rng is None else pair.stand_by()
        pair.start_devices()
        pair.submit(rounds)
        while rng is not None and waiting is not None and not is_over():
            time.sleep(float(rng.uniform(0.0, _PAUSE_S)))
            pair.hear(ear)
            if is_over():
                break
            killed_at = time.monotonic()
            at_work.popen.send_signal(signal.SIGKILL)
            spoke_at = pair.takes_over(ear, is_over)
            if spoke_at is not None:
                seconds.append(spoke_at - killed_at)
            at_work, waiting = waiting, pair.stand_by()
        wait(is_over, _JOB_S)
    finally:
        ear.close()
    return seconds


def _rows(labels: list[str]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return held-out rows, and each device's."""
    rng = np.random.Generator(np.random.PCG64(1))

    def drawn(count: int) -> list[Any]:
        return [{"text": " ".join(rng.choice(_WORDS, 8)), "label": labels[n % len(labels)]} for n in range(count)]

    return drawn(16), {name: drawn(16) for name in _NAMES}


def _ratio(folder: Path, postgres: PostgresServer, devices: int, repeats: int) -> dict[str, float]:
    """Return the ratios of the server's time for a round, pair by pair."""
    seconds: dict[str, list[float]] = {"sqlite": [], "postgres": []}
    for repeat in range(repeats):
        for kind, found in seconds.items():
            state_dir = folder / f"{kind}-{repeat}"
            state_dir.mkdir()
            if kind == "postgres":
                keep_address(state_dir, postgres.new_database(f"rounds{repeat}"))
            timed = run_rounds(state_dir, InstantFleet(devices), _TIMED_ROUNDS, _PARAMETERS, 20.0)
            found.append(statistics.median(timed[1:]))
    print({kind: [round(1e3 * value, 1) for value in found] for kind, found in seconds.items()}, "ms a round")
    return ratios(seconds["postgres"], seconds["sqlite"])


if __name__ == "__main__":
    main()
