"""How long the dashboard's pages take with 10,000 devices in the ledger, each with a profile.

    python -m benchmarks.speed.dashboard [--devices 10000] [--repeats 7]

Times the whole answer: queries, templates and the web framework, without a network. `make bench-dashboard` runs it. The
last line is one JSON object: seconds by page.
"""

from __future__ import annotations

import argparse
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
from server.storage.ledger import LEDGER_FILE, Ledger

if TYPE_CHECKING:
    from benchmarks.harness.figures import Spreads

FLEET = "many"
BOUND_S = 0.3
PAGES = {
    "fleet": "/ui/",
    "last_page": "/ui/?page=1000000",
    "search": "/ui/?q=77",
    "state": "/ui/?state=busy",
    "tag": "/ui/?tag=tag-3",
    "version": "/ui/?version=0.1.0",
    "board": "/ui/?board={board}",
    "device": "/ui/devices/device-00077",
}


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
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / LEDGER_FILE, durable=False)
        board = fill(ledger, args.devices)
        operations: Any = SimpleNamespace(
            ledger=ledger, fleet=FLEET, supervisor=SimpleNamespace(feed=Feed()), log_lines=lambda _name, _after: []
        )
        app = Litestar(make_dashboard(operations, "/api/v1", dict), logging_config=None)
        with TestClient(app) as client:
            results: Spreads = {
                name: spread([_seconds(client, path.format(board=board)) for _ in range(args.repeats)])
                for name, path in PAGES.items()
            }
        ledger.close()
    print_verdicts(results, dict.fromkeys(PAGES, BOUND_S))
    print(json.dumps({**provenance(devices=args.devices, repeats=args.repeats), "seconds": results}))


def _seconds(client: TestClient[Litestar], path: str) -> float:
    began = time.perf_counter()
    answer = client.get(path)
    seconds = time.perf_counter() - began
    if answer.status_code != 200:
        raise SystemExit(f"{path} answers {answer.status_code}: {answer.text}")
    return seconds


if __name__ == "__main__":
    main()
