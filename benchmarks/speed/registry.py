"""How long a page of a registry of 100,000 devices takes, with each filter: over the API, and on the dashboard.

    python -m benchmarks.speed.registry [--devices 100000] [--repeats 7] [--ledger postgresql://…]

Times the whole answer, without a network: queries, the web framework, and the dashboard's template, which also counts
the devices that a filter finds. ``registry_page_ms`` is the largest median of all pages. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Router
from litestar.testing import TestClient
from sqlalchemy import insert

from benchmarks.harness.provenance import provenance
from server.api.app import PREFIX
from server.api.asked_by import asker_dependencies
from server.api.device_routes import device_routes
from server.dashboard.app import make_dashboard
from server.queue.feed import Feed
from server.simulation.boards import modelled_profiles
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.storage.tables import DEVICES, HELD_TAGS, PROFILES

if TYPE_CHECKING:
    from collections.abc import Mapping

FLEET = "many"
FILTERS = {
    "all": "",
    "name": "q=77123",
    "no_such_name": "q=nothing-is-called-this",
    "state": "state=busy",
    "common_tag": "tag=arm",
    "rare_tag": "tag=room-77",
    "version": "version=0.1.2",
    "board": "board={board}",
    "free": "standing=free",
    "ineligible": "standing=ineligible",
    "resting": "standing=resting",
    "quarantine": "standing=quarantine",
    "all_filters": "q=7&state=online&tag=arm&version=0.1.1&standing=free",
}
"""Queries of the API and of the dashboard, by name."""
_BIRTH = {
    "machine": "aarch64",
    "runtimes": {"onnxruntime": "1.20.1"},
    "methods": ["spzo", "keep_directions", "curvature", "sign_momentum", "frozen-front", "top-levels"],
    "capability": {"kind": "forward-only"},
    "rows": 200,
}


def fill(ledger: Ledger, devices: int) -> str:
    """Enter devices with births, states, tags and profiles, as their messages would; return the board of one of them.

    In one transaction: the ledger's own writes, of which each is one, would take an hour.
    """
    profiles = modelled_profiles()
    rows, tags, kept = [], [], []
    for number in range(devices):
        name, version, own = f"device-{number:06}", f"0.1.{number % 3}", ["arm", f"room-{number % 1000}"]
        profile = profiles[number % len(profiles)] if number % 10 == 0 else None
        rows.append(
            {
                "fleet": FLEET,
                "name": name,
                "state": ("online", "busy", "lost")[number % 3],
                "birth": json.dumps({**_BIRTH, "device": name, "tags": own, "covey_version": version}),
                "ineligible": "not charging" if number % 20 == 0 else None,
                "reason": "no space left on device" if number % 100 == 1 else None,
                "quarantine": "two machines use its name" if number % 5000 == 2 else None,
                "covey_version": version,
                "board": None if profile is None else profile.facts.board,
            }
        )
        tags += [{"fleet": FLEET, "device": name, "tag": tag} for tag in own]
        if profile is not None:
            kept.append(
                {
                    "fleet": FLEET,
                    "device": name,
                    "payload_sha256": f"{number:064x}",
                    "profile": msgspec.json.encode(profile),
                    "bundle_sha256": profile.bundle.sha256,
                    "remarks": "[]",
                }
            )
    with ledger.transaction():
        for table, entries in ((DEVICES, rows), (HELD_TAGS, tags), (PROFILES, kept)):
            ledger.database.write_many(insert(table), entries)
    return profiles[0].facts.board


def pages_of(ledger: Ledger) -> TestClient[Litestar]:
    """Return a client of the API's routes of devices and of the dashboard, over a ledger."""
    operations: Any = SimpleNamespace(
        ledger=ledger, fleet=FLEET, supervisor=SimpleNamespace(feed=Feed()), log_lines=lambda _name, _after: []
    )
    routes = Router(PREFIX, route_handlers=device_routes(operations, dict))
    handlers = [routes, *make_dashboard(operations, PREFIX, dict)]
    return TestClient(Litestar(handlers, dependencies=asker_dependencies(), logging_config=None))


def paths_of(board: str, last: str) -> dict[str, str]:
    """Return the pages that are timed, by name; ``last``: a name whose page is the last one."""
    found = {}
    for name, query in FILTERS.items():
        asked = query.format(board=board)
        found[f"api_{name}"] = f"{PREFIX}/devices?limit=50&{asked}"
        found[f"dashboard_{name}"] = f"/ui/?{asked}"
    found["api_last"] = f"{PREFIX}/devices?limit=50&after={FLEET}/{last}"
    found["dashboard_last"] = f"/ui/?after={last}"
    return found


def timed(ledger: Ledger, paths: Mapping[str, str], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each page."""
    with pages_of(ledger) as client:
        return {name: statistics.median(_ms(client, path) for _ in range(repeats)) for name, path in paths.items()}


def _ms(client: TestClient[Litestar], path: str) -> float:
    began = time.perf_counter()
    answer = client.get(path)
    took = time.perf_counter() - began
    if answer.status_code != 200:
        raise SystemExit(f"{path} answers {answer.status_code}: {answer.text}")
    return 1e3 * took


def measure(devices: int = 100_000, repeats: int = 5, address: str | None = None) -> dict[str, float]:
    """Return ``registry_page_ms`` and the median of each page, ``registry_ms_…``.

    Args:
        devices: devices in the registry.
        repeats: times that each page is asked for.
        address: of a PostgreSQL for the ledger; None: a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        if address is not None:
            keep_address(Path(folder), address)
        with contextlib.closing(Ledger(Path(folder) / LEDGER_FILE, durable=False)) as ledger:
            board = fill(ledger, devices)
            found = timed(ledger, paths_of(board, f"device-{devices - 20:06}"), repeats)
    return {"registry_page_ms": max(found.values()), **{f"registry_ms_{name}": ms for name, ms in found.items()}}


def main() -> None:
    """Fill a registry, time its pages, print each, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--ledger", metavar="URL", help="an empty PostgreSQL database (default: a file)")
    args = parser.parse_args()
    results = measure(args.devices, args.repeats, args.ledger)
    for name, ms in results.items():
        print(f"{name:40} {ms:8.1f}")
    print(json.dumps({**provenance(devices=args.devices, repeats=args.repeats), **results}))


if __name__ == "__main__":
    main()
