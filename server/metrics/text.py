"""Prometheus' text of what is measured at one moment, in its exposition format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

from server.metrics.fleet import fleet_families
from server.metrics.jobs import job_families
from server.metrics.running import running_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from server.metrics.running import Running
    from server.storage.ledger import Ledger

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_of(ledger: Ledger, running: Callable[[], Running]) -> Callable[[], bytes]:
    """Return a function that returns the text. It may be called from any thread.

    Args:
        ledger: the server's ledger.
        running: tells what the server is doing now.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)  # each of them enters itself
    PlatformCollector(registry)
    GCCollector(registry)
    registry.register(_Now(ledger, running))
    return lambda: generate_latest(registry)


class _Now(Collector):
    def __init__(self, ledger: Ledger, running: Callable[[], Running]) -> None:
        self._ledger, self._running = ledger, running

    def collect(self) -> Iterator[Metric]:
        """Yield every family; the ledger is read now."""
        running = self._running()
        yield from running_families(running)
        yield from fleet_families(self._ledger, running.fleet)
        yield from job_families(self._ledger, running.fleet)

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: the registry must not read the ledger to learn the names."""
        return []
