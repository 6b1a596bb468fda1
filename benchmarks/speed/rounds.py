"""What a round costs the server itself, what dead devices cost, and what a fleet at rest costs.

    python -m benchmarks.speed.rounds [--devices 200] [--rounds 20] [--quiet-devices 1000]

Devices are messages over the in-process broker and train in no time, so a round lasts as long as the server works on
it: plans out, reports in, replay, ledger (durable, on disk). Its shares are those of a second run under cProfile, which
slows Python down: they are shares, not times. A fleet at rest is a real ``covey serve`` with its embedded broker and
MQTT connections that do nothing but stay.

`make bench-rounds` runs it. The last line is one JSON object with round_overhead_ms, dead_half_extra_s, idle_cpu_share
and idle_rss_mb.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.figures import spread
from benchmarks.harness.provenance import provenance
from benchmarks.workers.instant_fleet import InstantFleet, run_rounds
from benchmarks.workers.quiet_fleet import measure_idle

SHARES = {
    "ledger": r"server/storage/(database|\w+_writes|queries|device_queries|asking)\.py$",
    "replay": r"(server/rounds/aggregate|forward_only/replay_file)\.py$",
    "encoding": r"protocol/(messages|round_log)\.py$",
}
"""Files whose functions count for a share, where they are called from files that do not.

The commits of transactions that several writes share are entered through contextlib, and are not in the ledger's.
"""


@dataclass(frozen=True)
class Sizes:
    """What is measured: numbers of devices, rounds and parameters."""

    devices: int
    rounds: int
    parameters: int
    accept_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200, help="devices of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that are timed (default: %(default)s)")
    parser.add_argument("--parameters", type=int, default=147_456, help="trained parameters (default: %(default)s)")
    parser.add_argument("--accept-s", type=float, default=3.0, help="accept_s of the dead half (default: %(default)s)")
    parser.add_argument("--quiet-devices", type=int, default=1000, help="devices at rest (default: %(default)s)")
    parser.add_argument("--quiet-s", type=float, default=60.0, help="seconds at rest (default: %(default)s)")
    args = parser.parse_args()
    sizes = Sizes(args.devices, args.rounds, args.parameters, args.accept_s)
    rounds_ms = [1e3 * seconds for seconds in timed(sizes)[1:]]
    results: dict[str, object] = {"round_overhead_ms": spread(rounds_ms)}
    print(f"a round of {sizes.devices} devices: {spread(rounds_ms)} ms")
    results["shares"] = shares(sizes)
    print(f"shares under cProfile: {results['shares']}")
    results |= dead_half(sizes)
    print(
        f"half of the devices dead: the longest round takes {results['dead_half_extra_s']} s more; "
        f"accept_s is {sizes.accept_s} s"
    )
    results |= measure_idle(args.quiet_devices, args.quiet_s)
    print(f"{args.quiet_devices} devices at rest: {results['idle_cpu_share']} of a core, {results['idle_rss_mb']} MB")
    print(json.dumps({**results, **provenance(**vars(args))}))


def timed(sizes: Sizes, *, dead: int = 0) -> list[float]:
    """Return the seconds of each round, from its first plan to the next round's first."""
    with tempfile.TemporaryDirectory(prefix="covey-rounds-") as folder:
        fleet = InstantFleet(sizes.devices, dead=dead)
        return run_rounds(Path(folder), fleet, sizes.rounds, sizes.parameters, sizes.accept_s)


def shares(sizes: Sizes) -> dict[str, float]:
    """Return which share of a run's time is spent within each group of files."""
    profiler = cProfile.Profile()
    profiler.enable()
    timed(sizes)
    profiler.disable()
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = max(cumulative for _, _, _, cumulative, _ in stats.values())
    found = {}
    for share, files in SHARES.items():
        inside = sum(
            edge[3]
            for (file, _, _), (_, _, _, _, callers) in stats.items()
            if re.search(files, file)
            for (caller, _, _), edge in callers.items()
            if not re.search(files, caller) and not caller.endswith("contextlib.py")  # else nested blocks count twice
        )
        found[share] = round(inside / whole, 3)
    return found


def dead_half(sizes: Sizes) -> dict[str, object]:
    """Return how much longer the longest round takes where half of the devices die after their announcement.

    Later rounds are offered to the devices that are left, so the longest round is the first. The last one is not
    counted: behind it the server waits for proofs of the final adapter, for up to a minute from devices that are dead.
    """
    alive, dead = timed(sizes)[:-1], timed(sizes, dead=sizes.devices // 2)[:-1]
    return {
        "dead_half_extra_s": round(max(dead) - statistics.median(alive), 2),
        "dead_half_later_rounds_ms": spread([1e3 * seconds for seconds in sorted(dead)[:-1]]),
    }


if __name__ == "__main__":
    main()
