"""What a device and a round cost the server, and the model fitted to it that `covey scale` computes with.

    python -m benchmarks.speed.costs [--rounds 6] [--write]

Devices are messages over the in-process broker and train in no time; the processor seconds of the server's thread are
counted without theirs. Of several rounds, the cheapest counts, because a busy machine makes others dearer. Not in it:
the server's MQTT client, TLS and signatures (`make bench-signing`, `make bench-load`), deltas, and evaluation. The
model: a round costs a fixed part, a part for each report, a part for each device that is online, and a part for each
parameter and direction that is replayed.

`make bench-costs` runs it; --write puts the model into the file that `covey scale` reads. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.harness.fit import Fit, fit, growth
from benchmarks.harness.provenance import provenance
from benchmarks.harness.tables import markdown_table
from benchmarks.workers.counted_rounds import Counted, count_rounds, memory_per_device
from server.advice.scale import COSTS_FILE, Cost, Costs

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARAMETERS = 147_456
SIZES = (
    (50, 50, _PARAMETERS),
    (200, 50, _PARAMETERS),
    (200, 200, _PARAMETERS),
    (200, 200, 8 * _PARAMETERS),
    (1000, 50, _PARAMETERS),
    (1000, 200, _PARAMETERS),
    (1000, 1000, _PARAMETERS),
    (4000, 1000, _PARAMETERS),
    (16_000, 50, _PARAMETERS),
)
"""Devices online, reports a round, trained parameters."""
_GIGA = 1e9
_MEMORY_DEVICES = 2000
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 new folders in it: no disk is waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each size (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the model for covey scale")
    args = parser.parse_args()
    counted = [_count(*size, args.rounds) for size in SIZES]
    costs, results = model(counted, _memory_bytes())
    headers = ("online", "reports", "replayed, 10^9", "CPU s a round", "ms a report", "log bytes", "ledger bytes")
    print(markdown_table(headers, [_row(one) for one in counted]))
    for key, value in results.items():
        print(f"{key:32} {value}")
    if args.write:
        COSTS_FILE.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    print(json.dumps({**results, **provenance(**vars(args))}))


def measure(rounds: int = 6, sizes: Sequence[tuple[int, int, int]] = SIZES) -> dict[str, Any]:
    """Return the model's coefficients, and the exponents with which a round's cost grows.

    Args:
        rounds: of each size; two or more.
        sizes: see SIZES; five or more.
    """
    return model([_count(*size, rounds) for size in sizes], _memory_bytes())[1]


def _count(online: int, cohort: int, parameters: int, rounds: int) -> Counted:
    with tempfile.TemporaryDirectory(prefix="covey-costs-", dir=_MEMORY) as folder:
        return count_rounds(Path(folder), online, cohort, rounds, parameters)


def _row(one: Counted) -> tuple[str, ...]:
    return (
        f"{one.online:,}",
        f"{one.cohort:,}",
        f"{one.replayed / _GIGA:.2f}",
        f"{one.round_s:.3f}",
        f"{1e3 * one.round_s / one.cohort:.2f}",
        f"{one.log_bytes:,}",
        f"{one.ledger_bytes:,}",
    )


def _memory_bytes() -> float:
    with tempfile.TemporaryDirectory(prefix="covey-costs-", dir=_MEMORY) as folder:
        return memory_per_device(Path(folder), _MEMORY_DEVICES)


def model(counted: Sequence[Counted], memory_bytes: float) -> tuple[Costs, dict[str, Any]]:
    """Fit the costs; return them, and what the benchmark prints of them.

    Args:
        counted: what was counted at several sizes.
        memory_bytes: live memory of the server for each device.
    """
    rounds = fit([(1.0, one.cohort, one.online, one.replayed / _GIGA) for one in counted], [o.round_s for o in counted])
    announced = fit([(1.0, one.online) for one in counted], [one.announcements_s for one in counted])
    ledger = fit(
        [(1.0, one.online, one.rounds * one.cohort) for one in counted], [float(one.ledger_bytes) for one in counted]
    )
    whole = [one for one in counted if one.online == one.cohort]
    one = max(counted, key=lambda made: made.cohort)
    flow, source = one.round_flow, provenance()
    costs = Costs(
        commit=source["commit"],
        machine=f"{source['cpu'] or source['machine']}, {source['cores']} cores",
        r2=rounds.r2,
        fixed_s=_cost(rounds, 0),
        report_s=_cost(rounds, 1),
        online_s=_cost(rounds, 2),
        replayed_s=Cost(rounds.coefficients[3] / _GIGA, rounds.errors[3] / _GIGA),
        announcement_s=_cost(announced, 1),
        up_messages=flow.received / one.cohort,
        up_bytes=flow.received_bytes / one.cohort,
        down_messages=flow.sent / one.cohort,
        down_bytes=flow.sent_bytes / one.cohort,
        log_bytes=one.log_bytes / one.cohort,
        directions=one.replayed / one.cohort / _PARAMETERS,
        ledger_report_bytes=_cost(ledger, 2),
        ledger_device_bytes=_cost(ledger, 1),
        ledger_report_rows=one.rows[0] / one.cohort,
        ledger_device_rows=one.rows[1],
        memory_device_bytes=memory_bytes,
        most_online=max(made.online for made in counted),
        most_reports=one.cohort,
    )
    return costs, {
        "server_cost_slope": round(growth([o.cohort for o in whole], [o.round_s for o in whole]), 3),
        "server_ms_per_report": round(1e3 * costs.report_s.value, 4),
        "server_us_per_online_device": round(1e6 * costs.online_s.value, 3),
        "server_s_per_giga_replayed": round(rounds.coefficients[3], 4),
        "server_ms_per_round": round(1e3 * costs.fixed_s.value, 3),
        "server_ms_per_announcement": round(1e3 * costs.announcement_s.value, 4),
        "fit_r2": round(rounds.r2, 4),
        "messages_per_report": round(costs.up_messages + costs.down_messages, 2),
        "bytes_up_per_report": round(costs.up_bytes),
        "bytes_down_per_report": round(costs.down_bytes),
        "log_bytes_per_report": round(costs.log_bytes),
        "ledger_bytes_per_report": round(costs.ledger_report_bytes.value),
        "ledger_rows_per_report": round(costs.ledger_report_rows, 3),
        "ledger_bytes_per_device": round(costs.ledger_device_bytes.value),
        "server_memory_bytes_per_device": round(memory_bytes),
    }


def _cost(found: Fit, column: int) -> Cost:
    return Cost(found.coefficients[column], found.errors[column])


if __name__ == "__main__":
    main()
