"""What is measured of a fleet: its devices by state, those that need the operator, and its rollouts."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import GaugeMetricFamily

from server.storage import device_queries, rollout_queries, trust_queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from server.storage.ledger import Ledger

_SHOWN_ROLLOUTS = 10
"""The newest ones; older ones have no series any more."""


def fleet_families(ledger: Ledger, fleet: str) -> Iterator[Metric]:
    """Yield what is measured of a fleet's devices and rollouts."""
    devices = GaugeMetricFamily("covey_devices", "Known devices, by what they said last.", labels=["state"])
    for state, count in device_queries.states_of(ledger, fleet).items():
        devices.add_metric([state], count)
    yield devices
    yield GaugeMetricFamily(
        "covey_devices_ineligible",
        "Devices that their owner's rules or their rows keep from training.",
        device_queries.count_ineligible(ledger, fleet),
    )
    yield GaugeMetricFamily(
        "covey_devices_quarantined",
        "Devices in quarantine: they wait for covey device release or revoke.",
        len(device_queries.quarantined_devices(ledger, fleet)),
    )
    yield GaugeMetricFamily(
        "covey_joins_waiting",
        "Devices that wait for covey device approve.",
        len(trust_queries.pending_joins(ledger, fleet)),
    )
    yield from _held_out(ledger, fleet)
    yield _rollouts(ledger, fleet)


def _held_out(ledger: Ledger, fleet: str) -> Iterator[Metric]:
    """Yield the accuracies that devices have measured; a device that measures none has no series."""
    said = device_queries.held_out_of(ledger, fleet)
    accuracy = GaugeMetricFamily(
        "covey_device_held_out_accuracy_ratio",
        "Accuracy of the device's own model on rows that it never trains on, 0 to 1.",
        labels=["device"],
    )
    for name, found in said.items():
        accuracy.add_metric([name], found.accuracy)
    yield accuracy
    yield GaugeMetricFamily(
        "covey_devices_held_out_fallen",
        "Devices whose own model is further below its best accuracy than their owners allow.",
        sum(found.has_fallen for found in said.values()),
    )


def _rollouts(ledger: Ledger, fleet: str) -> Metric:
    family = GaugeMetricFamily(
        "covey_rollout_devices",
        "Devices of a rollout, by how far they are.",
        labels=["rollout", "kind", "rollout_state", "state"],
    )
    for record in rollout_queries.rollouts_of(ledger, fleet)[-_SHOWN_ROLLOUTS:]:
        counts = collections.Counter(str(entry["state"]) for entry in record.document["devices"].values())
        for state, count in sorted(counts.items()):
            family.add_metric([str(record.id), str(record.document["kind"]), record.state, state], count)
    return family
