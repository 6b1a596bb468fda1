"""What grows with a fleet, in one line: each part is a module of benchmarks/speed with a ``measure`` and a main.

    python -m benchmarks.scale [--parts swarm,…] [--quick]

`make bench-scale` runs it. The last line is one JSON object with the keys of all parts. With ``--quick`` every part
runs with small sizes, to see in some minutes that all of them work and have their keys: its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import provenance
from benchmarks.speed import closing, costs, failover, ray_work, registry, swarm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PARTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "swarm": swarm.measure,
    "costs": costs.measure,
    "closing": closing.measure,
    "registry": registry.measure,
    "failover": failover.measure,
    "ray": ray_work.measure,
}
"""What is measured, in this order; each returns its keys. The last two need PostgreSQL and the extra ``ray``."""

QUICK: Mapping[str, Mapping[str, Any]] = {
    "swarm": {"sizes": (50, 100), "cohort": 50, "rounds": 2},
    "costs": {"rounds": 2, "sizes": costs.SIZES[:5]},
    "closing": {"parameters": 50_000},
    "registry": {"devices": 5_000, "repeats": 1},
    "failover": {"kills": 1, "rounds": 20, "devices": 10, "repeats": 1},
    "ray": {"parameters": 2_000_000, "terms": 90, "rows": 64, "repeats": 1},
}
"""What a part is measured with under ``--quick``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts, and print all keys in one line; None: this process's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="with small sizes, to see that every part works")
    args = parser.parse_args(argv)
    names = args.parts.split(",")
    if unknown := set(names).difference(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: dict[str, Any] = {}
    for name in names:
        part = PARTS[name](**(QUICK[name] if args.quick else {}))
        for key, value in part.items():
            print(f"{name:10} {key:40} {value}")
        found |= part
    print(json.dumps({**found, **provenance(parts=args.parts, quick=args.quick)}))


if __name__ == "__main__":
    main()
