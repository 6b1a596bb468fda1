"""How many reports a second reach a server over one connection to its broker, and over several that share them.

    python -m benchmarks.speed.report_connections [--broker embedded] [--connections 1,3] [--reports 3000]
        [--delay-ms 100] [--runs 3]

The broker is a process of its own: Covey's own, which keeps to 100 messages under way on a connection, or mosquitto,
with the limits that ``covey fleet mosquitto`` writes. A member publishes reports to it at once; the server's
connections go through a link that delays each direction by ``--delay-ms`` (0: by nothing). The time is that from the
first report which arrives to the last one; ``cpu_ms`` is the CPU time of this process for a report: publisher, link and
the server's connections. All numbers of connections take turns; medians count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import provenance
from benchmarks.workers.fleet_services import broker as mosquitto
from benchmarks.workers.fleet_services import mosquitto_version
from benchmarks.workers.slow_link import slow_link
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.topics import topic_for
from server.serving.broker_access import hands_reports_to_groups
from server.serving.report_group import ReportGroup
from server.web.broker import EMBEDDED, open_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_runtime.network.address import BrokerAddress
    from edge_runtime.network.transport import Event

_FLEET, _DEVICES = "default", 100
_REPORT_BYTES = 500
_LOOK_S, _QUIET_S, _SILENT_S = 0.05, 2.0, 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line; None: this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=("embedded", "mosquitto"), default="embedded", help="(%(default)s)")
    parser.add_argument("--connections", default="1,3", help="numbers of connections (default: %(default)s)")
    parser.add_argument("--reports", type=int, default=3000, help="reports of a run (default: %(default)s)")
    parser.add_argument("--delay-ms", type=float, default=100.0, help="delay of each direction (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each number (default: %(default)s)")
    args = parser.parse_args(argv)
    numbers = [int(number) for number in args.connections.split(",")]
    results = measure(numbers, args.reports, args.delay_ms / 1000, args.runs, broker=args.broker)
    for one in results:
        print(json.dumps(one))
    settings = vars(args) | {"version": mosquitto_version() if args.broker == "mosquitto" else version("iotcore")}
    print(json.dumps({"by_connections": results, **provenance(**settings)}))


@contextlib.contextmanager
def _broker(kind: str) -> Iterator[int]:
    """Run a broker until the block ends; yield its port."""
    if kind == EMBEDDED:
        with open_broker(EMBEDDED, "127.0.0.1", 0) as address:
            yield address.port
        return
    with tempfile.TemporaryDirectory(prefix="covey-reports-") as folder, mosquitto(Path(folder), None) as (port, _):
        yield port


def measure(
    numbers: Sequence[int], reports: int, delay_s: float, runs: int = 1, *, broker: str = EMBEDDED
) -> list[dict[str, Any]]:
    """Return the medians of each number of connections, and the ratio of its rate to that of the first.

    Args:
        numbers: numbers of connections.
        reports: reports of a run.
        delay_s: seconds that a byte takes between broker and server, in each direction.
        runs: runs of each number.
        broker: ``embedded`` or ``mosquitto``.

    Raises:
        SystemExit: reports did not arrive, or arrived twice.
    """
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    with _broker(broker) as port, slow_link(port, delay_s) as slow:
        near, far = (parse_broker(f"mqtt://127.0.0.1:{one}") for one in (port, slow))
        for run in range(runs):
            for number in numbers:
                found[number].append(_run(near, far, number, reports, f"{run}-{number}"))
    rates = {number: statistics.median(rate for rate, _ in found[number]) for number in numbers}
    return [
        {
            "connections": number,
            "delay_ms": 1000 * delay_s,
            "reports_per_s": round(rates[number], 1),
            "over_first": round(rates[number] / rates[numbers[0]], 2),
            "cpu_ms": round(1000 * statistics.median(cpu_s for _, cpu_s in found[number]) / reports, 3),
        }
        for number in numbers
    ]


def _run(near: BrokerAddress, far: BrokerAddress, number: int, reports: int, token: str) -> tuple[float, float]:
    """Return the reports a second of one run, and its CPU seconds."""
    came: set[int] = set()  # connections that have brought a message

    def connect(index: int, hand_to: Callable[[Event], None]) -> MqttTransport:
        def noted(event: Event) -> None:
            if isinstance(event, Message):
                came.add(index)
            hand_to(event)

        return MqttTransport(far, f"server-{token}-{index}", keep_session=False, hand_to=noted)

    def asked() -> bool | None:
        return hands_reports_to_groups(near, _FLEET, None)

    group = ReportGroup(connect, number, topic_for(_FLEET, "+", "report"), f"group-{token}", asked)
    member = MqttTransport(near, f"member-{token}", keep_session=False)
    try:
        group.subscribe(topic_for(_FLEET, "+", "report"))
        while len(came) < number:  # the broker has not taken all subscriptions yet
            member.publish(topic_for(_FLEET, "pi-0", "report"), b"ready?")
            group.receive(_LOOK_S)
        while group.receive(_QUIET_S) is not None:
            pass
        began_cpu_s = time.process_time()
        for index in range(reports):
            member.publish(topic_for(_FLEET, f"pi-{index % _DEVICES}", "report"), b"%0*d" % (_REPORT_BYTES, index))
        payloads = [_next(group).payload]
        began_s = time.monotonic()
        payloads += [_next(group).payload for _ in range(reports - 1)]
        seconds = time.monotonic() - began_s
        if len(set(payloads)) != reports:
            raise SystemExit("a report has arrived twice")
        return (reports - 1) / seconds, time.process_time() - began_cpu_s
    finally:
        member.close()
        group.close()


def _next(group: ReportGroup) -> Message:
    while True:
        event = group.receive(_SILENT_S)
        if isinstance(event, Message):
            return event
        if event is None:
            raise SystemExit(f"no report in {_SILENT_S:g} s")


if __name__ == "__main__":
    main()
