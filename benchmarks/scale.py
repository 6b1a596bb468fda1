"""What grows with a fleet, in one line: each part is a module of benchmarks/speed with a ``measure`` and a main.

    python -m benchmarks.scale [--parts swarm,…]

`make bench-scale` runs it. The last line is one JSON object with the keys of all parts.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import provenance
from benchmarks.speed import closing, costs, failover, ray_work, registry, swarm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "swarm": swarm.measure,
    "costs": costs.measure,
    "closing": closing.measure,
    "registry": registry.measure,
    "failover": failover.measure,
    "ray": ray_work.measure,
}
"""What is measured, in this order; each returns its keys. The last two need PostgreSQL and the extra ``ray``."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts, and print all keys in one line; None: this process's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts (default: %(default)s)")
    args = parser.parse_args(argv)
    names = args.parts.split(",")
    if unknown := set(names).difference(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: dict[str, Any] = {}
    for name in names:
        part = PARTS[name]()
        for key, value in part.items():
            print(f"{name:10} {key:40} {value}")
        found |= part
    print(json.dumps({**found, **provenance(parts=args.parts)}))


if __name__ == "__main__":
    main()
