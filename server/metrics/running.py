"""What is measured of the server's process: its version, its connection, its disk, and what it has refused."""

from __future__ import annotations

import collections
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prometheus_client import Metric


@dataclass(frozen=True)
class Running:
    """A running server.

    Attributes:
        fleet: the fleet's name.
        covey_version: version of the server.
        started_at_s: seconds since 1970 at its start.
        is_connected: whether it has said hello on its broker.
        devices_here: number of devices that have answered the last hello.
        jobs_at_work: number of jobs that run.
        refused: messages that were refused since the start, by device and reason.
        state_dir: the state directory.
    """

    fleet: str
    covey_version: str
    started_at_s: float
    is_connected: bool
    devices_here: int
    jobs_at_work: int
    refused: Mapping[tuple[str, str], int]
    state_dir: Path


def running_families(running: Running) -> Iterator[Metric]:
    """Yield what is measured of the server's process."""
    yield InfoMetricFamily("covey_server", "The server.", {"version": running.covey_version, "fleet": running.fleet})
    yield GaugeMetricFamily(
        "covey_server_start_time_seconds", "When the server started, since 1970.", running.started_at_s
    )
    yield GaugeMetricFamily(
        "covey_broker_connected", "1 once the server has said hello on its broker.", float(running.is_connected)
    )
    yield GaugeMetricFamily("covey_devices_here", "Devices that answered the last hello.", running.devices_here)
    yield GaugeMetricFamily("covey_jobs_at_work", "Jobs that run.", running.jobs_at_work)
    refused = CounterMetricFamily(
        "covey_messages_refused",
        "Messages that were refused because of their signature, since the start; by reason.",
        labels=["reason"],
    )
    by_reason: collections.Counter[str] = collections.Counter()
    for (_device, reason), count in running.refused.items():
        by_reason[reason] += count
    for reason, count in sorted(by_reason.items()):
        refused.add_metric([reason], count)
    yield refused
    yield GaugeMetricFamily(
        "covey_state_free_bytes",
        "Free space where the state directory is.",
        shutil.disk_usage(running.state_dir).free,
    )
    ledger = running.state_dir / "ledger.sqlite"
    if ledger.exists():
        yield GaugeMetricFamily("covey_ledger_size_bytes", "Size of the ledger's file.", ledger.stat().st_size)
