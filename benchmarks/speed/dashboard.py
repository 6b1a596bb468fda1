"""How long the dashboard's pages take with 10,000 devices in the ledger, and with a job of 2,400 reports.

    python -m benchmarks.speed.dashboard [--devices 10000] [--rounds 30] [--repeats 7]

Each device has a profile. The job is a simulated one of 400 devices with a bandit, 80 reports per round.

Times the whole answer: queries, templates and the web framework, without a network. `make bench-dashboard` runs it. The
last line is one JSON object: seconds by page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from litestar import Litestar
from litestar.testing import TestClient

from benchmarks.harness.figures import print_verdicts, spread
from benchmarks.harness.provenance import provenance
from server.dashboard.app import make_dashboard
from server.queue.feed import Feed
from server.simulation.boards import modelled_profiles
from server.simulation.presence import FLEET as SIMULATED_FLEET
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.harness.figures import Spreads

FLEET = "many"
BOUND_S = 0.3
PAGES = {
    "fleet": "/ui/",
    "last_page": "/ui/?after=device-09950",
    "search": "/ui/?q=77",
    "state": "/ui/?state=busy",
    "tag": "/ui/?tag=tag-3",
    "version": "/ui/?version=0.1.0",
    "board": "/ui/?board={board}",
    "device": "/ui/devices/device-00077",
}
JOB_PAGES = {"job": f"/ui/jobs/{JOB_NAME}", "bandit": f"/ui/jobs/{JOB_NAME}/bandit"}
JOB_DEVICES, COHORT = 400, 80


def fill(ledger: Ledger, devices: int) -> str:
    """Enter devices with birth, state, tag and profile; return the board of one of them."""
    profiles = modelled_profiles()
    for number in range(devices):
        name = f"device-{number:05}"
        birth = {
            "tags": [f"tag-{number % 10}"],
            "covey_version": f"0.1.{number % 3}",
            "machine": "aarch64",
            "runtimes": {"onnxruntime": "1.20.1"},
            "capability": {"kind": "forward-only"},
        }
        ledger.device_born(FLEET, name, json.dumps(birth))
        ledger.device_state(FLEET, name, ("online", "busy", "lost")[number % 3])
        profile = profiles[number % len(profiles)]
        ledger.profile_received(FLEET, name, f"{number:064x}", profile, [])
    return profiles[0].facts.board


def main() -> None:
    """Fill a ledger, time the pages, print each against the bound, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30, help="of the job (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(Ledger(Path(folder) / LEDGER_FILE, durable=False)) as ledger:
            board = fill(ledger, args.devices)
            paths = {name: path.format(board=board) for name, path in PAGES.items()}
            results = _timed(ledger, FLEET, paths, args.repeats)
        job_dir = Path(folder) / "job"
        simulate(
            SimulateOptions(devices=JOB_DEVICES, rounds=args.rounds, cohort=COHORT, drop_out=0.0), state_dir=job_dir
        )
        with contextlib.closing(Ledger(job_dir / LEDGER_FILE, read_only=True)) as ledger:
            results |= _timed(ledger, SIMULATED_FLEET, JOB_PAGES, args.repeats)
    print_verdicts(results, dict.fromkeys(results, BOUND_S))
    about = provenance(
        devices=args.devices, job_devices=JOB_DEVICES, reports=args.rounds * COHORT, repeats=args.repeats
    )
    print(json.dumps({**about, "seconds": results}))


def _timed(ledger: Ledger, fleet: str, paths: Mapping[str, str], repeats: int) -> Spreads:
    """Return how long pages take, over a ledger that nobody writes to."""
    operations: Any = SimpleNamespace(
        ledger=ledger, fleet=fleet, supervisor=SimpleNamespace(feed=Feed()), log_lines=lambda _name, _after: []
    )
    app = Litestar(make_dashboard(operations, "/api/v1", dict), logging_config=None)
    with TestClient(app) as client:
        return {name: spread([_seconds(client, path) for _ in range(repeats)]) for name, path in paths.items()}


def _seconds(client: TestClient[Litestar], path: str) -> float:
    began = time.perf_counter()
    answer = client.get(path)
    seconds = time.perf_counter() - began
    if answer.status_code != 200:
        raise SystemExit(f"{path} answers {answer.status_code}: {answer.text}")
    return seconds


if __name__ == "__main__":
    main()
