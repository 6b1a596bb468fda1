"""What is measured of a fleet's jobs: state, rounds, held-out loss and accuracy, forward passes and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from server.storage import queries
from server.views.summary import job_rounds, job_summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from server.storage.ledger import Ledger

STATES = ("queued", "running", "paused", "stopped", "failed", "finished")
_ENDED = ("stopped", "failed", "finished")
SHOWN_ENDED = 20
"""So many ended jobs have series, the newest ones, so that a fleet of years does not have thousands."""

_GAUGES = {
    "rounds_wanted": ("rounds_wanted", "Rounds that the job is to have."),
    "devices": ("devices", "Devices that have reported."),
    "loss_end": ("held_out_loss", "Held-out loss after the last evaluated round."),
    "accuracy_end": ("held_out_accuracy_ratio", "Held-out accuracy after the last evaluated round, 0 to 1."),
    "loss_start": ("held_out_loss_start", "Held-out loss before the first round."),
    "accuracy_start": ("held_out_accuracy_start_ratio", "Held-out accuracy before the first round, 0 to 1."),
    "epsilon": ("privacy_epsilon", "Spent privacy budget of the device that was asked most."),
}
_COUNTERS = {
    "rounds": ("rounds", "Aggregated rounds."),
    "reports": ("reports", "Reports that counted."),
    "front_passes": ("front_passes", "Forward passes of the front, over all reports that counted."),
    "back_passes": ("back_passes", "Forward passes of the back, over all reports that counted."),
}


def job_families(ledger: Ledger, fleet: str) -> Iterator[Metric]:
    """Yield what is measured of a fleet's jobs: of those that have not ended, and of the newest SHOWN_ENDED others."""
    jobs = queries.jobs_of(ledger, fleet)
    counts = dict.fromkeys(STATES, 0)
    for job in jobs:
        counts[job.state] = counts.get(job.state, 0) + 1
    family = GaugeMetricFamily("covey_jobs", "Jobs of the fleet, by state.", labels=["state"])
    for state, count in counts.items():
        family.add_metric([state], count)
    yield family
    shown = _Families()
    ended = [job.name for job in jobs if job.state in _ENDED][-SHOWN_ENDED:]
    for job in jobs:
        if job.state not in _ENDED or job.name in ended:
            shown.add(job.name, job_summary(ledger, job.name), job_rounds(ledger, job.name))
    yield from shown.families.values()


@dataclass
class _Families:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = field(default_factory=dict)

    def add(self, job: str, summary: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
        """Add a job's values; what is not known yet has no series."""
        for key, (name, text) in _GAUGES.items():
            self._gauge(name, text, job, summary[key])
        for key, (name, text) in _COUNTERS.items():
            self._counter(name, text, job, summary[key])
        for key, way in (("bytes_up_per_device_round", "upload"), ("bytes_down_per_device_round", "download")):
            total = None if summary[key] is None else summary[key] * summary["reports"]
            self._counter(f"{way}_bytes", f"Bytes of {way}s, over all reports that counted.", job, total)
        self._rounds(job, rounds)

    def _rounds(self, job: str, rounds: list[dict[str, Any]]) -> None:
        closed = [made for made in rounds if made["closed_at"] is not None]
        failed = sum(made["state"] not in ("open", "aggregated") for made in rounds)
        self._counter("failed_attempts", "Attempts at rounds that were not aggregated.", job, failed)
        if closed:
            opened, ended = (datetime.fromisoformat(closed[-1][key]) for key in ("opened_at", "closed_at"))
            took_s = (ended - opened).total_seconds()
            self._gauge("last_round_seconds", "How long the last closed round took, in whole seconds.", job, took_s)
            self._gauge(
                "last_round_timestamp_seconds", "When the last round was closed, since 1970.", job, ended.timestamp()
            )

    def _gauge(self, name: str, text: str, job: str, value: float | None) -> None:
        self._add(GaugeMetricFamily, f"covey_job_{name}", text, job, value)

    def _counter(self, name: str, text: str, job: str, value: float | None) -> None:
        self._add(CounterMetricFamily, f"covey_job_{name}", text, job, value)

    def _add(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        job: str,
        value: float | None,
    ) -> None:
        if value is None:
            return
        if name not in self.families:
            self.families[name] = kind(name, text, labels=["job"])
        self.families[name].add_metric([job], value)
