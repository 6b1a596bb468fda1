"""What a fleet of a size needs of the server, computed from a cost model that was fitted to measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

COSTS_FILE = Path(__file__).with_name("scale_costs.json")
"""The fitted costs; `make bench-costs` measures them."""
BUSY = 0.5
"""Share of one core up to which one server is taken to keep up: its thread also waits for disks and for the broker."""
RESTART_S = 60.0
"""Seconds of its processor within which a server that has restarted is to know all devices that are online."""
_DAY_S = 86_400.0
_BYTES_PER_PARAMETER = 4
_KINDS_OF_PRESENCE = 3
"""Messages of a device that comes and goes: its announcement, that it is there, and that it is lost."""


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted coefficient and its standard error, in the same unit."""

    value: float
    error: float


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured, for each device and round. Seconds are processor seconds of the server's one thread.

    Attributes:
        commit: of Covey when it was measured.
        machine: where it was measured.
        r2: share of the variance of a round's seconds that the model explains.
        fixed_s: of a round.
        report_s: of a report: plan, acceptance, report, answer and the ledger's writes.
        online_s: of a device that is online, for each round: whether it can be chosen.
        replayed_s: of a parameter and direction that is replayed when a round is closed.
        announcement_s: of a device that announces itself.
        up_messages: messages of a device in a round.
        up_bytes: their bytes.
        down_messages: messages to it.
        down_bytes: their bytes, without adapters and logs.
        log_bytes: bytes of the replay log for each report in it.
        directions: directions of a report in the measured rounds.
        ledger_report_bytes: growth of the ledger for each report.
        ledger_device_bytes: growth of the ledger for each device.
        ledger_report_rows: rows for each report.
        ledger_device_rows: rows for each device.
        memory_device_bytes: live memory of the server's process for each device that has announced itself.
        most_online: the largest number of devices that was measured.
        most_reports: the largest round that was measured.
    """

    commit: str | None
    machine: str
    r2: float
    fixed_s: Cost
    report_s: Cost
    online_s: Cost
    replayed_s: Cost
    announcement_s: Cost
    up_messages: float
    up_bytes: float
    down_messages: float
    down_bytes: float
    log_bytes: float
    directions: float
    ledger_report_bytes: Cost
    ledger_device_bytes: Cost
    ledger_report_rows: float
    ledger_device_rows: float
    memory_device_bytes: float
    most_online: int
    most_reports: int


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet and job that are asked about.

    Attributes:
        devices: devices of the fleet.
        online: share of them that is online at a time.
        joins_per_day: how often a device comes online each day.
        cohort: reports of a round.
        over_selection: as in the job.
        round_every_s: seconds from round to round.
        adapter_bytes: size of the adapter.
        directions: directions of a report, that is steps × scalars of a step; None: those of the measured rounds.
        sends_deltas: whether devices backpropagate, and so send an adapter's bytes up.
        broker_sessions: connections that one broker holds; None: not known.
    """

    devices: int
    online: float
    joins_per_day: float
    cohort: int
    over_selection: float
    round_every_s: float
    adapter_bytes: float
    directions: int | None = None
    sends_deltas: bool = False
    broker_sessions: int | None = None


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What such a fleet needs of one server. Unknown is None.

    Attributes:
        round_s: processor seconds of a round: also the shortest time that a round can take the server.
        round_s_error: two standard errors of it.
        cores: share of a core that rounds and announcements take together; above 1, one server does not do it.
        cores_error: two standard errors of it.
        is_within_one_server: whether cores, with its error, is at most BUSY.
        messages_per_s: of rounds and presence, on average; the broker handles each once in and once out.
        up_bytes_per_s: from devices, on average.
        down_bytes_per_s: to devices, on average, adapters included: what a cache in front of the server can carry.
        fetched_bytes: what a device fetches before a round: the logs of the rounds that it missed, or the adapter.
        missed_rounds: rounds that lie between two offers to one device.
        final_bytes: what all devices online fetch at the end of the job.
        presence_s: processor seconds until the whole fleet is known again after the server's restart.
        ledger_rows_per_day: rows that rounds add.
        ledger_bytes_per_day: bytes that rounds add.
        ledger_device_bytes: bytes that the devices take, once.
        brokers: brokers that hold the connections; None: broker_sessions is not known.
        memory_bytes: of the server's process for the devices.
        is_extrapolated: whether the fleet or the round is larger than any that was measured.
        most_devices: devices up to which one server does the same rounds, and knows all that are online within
            RESTART_S after its restart; None: the rounds alone are too much.
        devices_end_with: what ends first as the fleet grows: ``restart``, or ``rounds`` for the processor.
        most_cohort: reports a round up to which one server keeps up with this fleet; None: presence alone is too much.
    """

    round_s: float
    round_s_error: float
    cores: float
    cores_error: float
    is_within_one_server: bool
    messages_per_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float
    fetched_bytes: float
    missed_rounds: float
    final_bytes: float
    presence_s: float
    ledger_rows_per_day: float
    ledger_bytes_per_day: float
    ledger_device_bytes: float
    brokers: int | None
    memory_bytes: float
    is_extrapolated: bool
    most_devices: int | None
    devices_end_with: Literal["restart", "rounds"]
    most_cohort: int | None


def needs(costs: Costs, fleet: Fleet) -> Needs:
    """Compute what a fleet needs.

    Args:
        costs: the fitted costs.
        fleet: what is asked about.
    """
    online = fleet.devices * fleet.online
    reports = min(float(fleet.cohort), online)
    offers = min(reports * fleet.over_selection, online)
    round_s, round_error = _sum(_parts(costs, fleet, reports, online))
    joins_per_s = fleet.devices * fleet.joins_per_day / _DAY_S
    joins_s, joins_error = _sum([(costs.announcement_s, joins_per_s)])
    cores = round_s / fleet.round_every_s + joins_s
    error = round_error / fleet.round_every_s + joins_error
    missed = max(1.0, online / offers)
    log_bytes = reports * costs.log_bytes * max(1.0, _directions(costs, fleet) / costs.directions)
    fetched = fleet.adapter_bytes if fleet.sends_deltas else min(fleet.adapter_bytes, missed * log_bytes)
    rounds_per_day = _DAY_S / fleet.round_every_s
    a_device = costs.online_s.value * fleet.online / fleet.round_every_s
    a_device += costs.announcement_s.value * fleet.joins_per_day / _DAY_S
    a_report = _sum(_parts(costs, fleet, 1.0, 0.0)[1:])[0] / fleet.round_every_s
    of_round = _sum(_parts(costs, fleet, reports, 0.0))[0] / fleet.round_every_s
    of_fleet = _sum(_parts(costs, fleet, 0.0, online))[0] / fleet.round_every_s + joins_s
    by_rounds = _most(BUSY - of_round, a_device)
    by_restart = int(RESTART_S / (costs.announcement_s.value * fleet.online))
    return Needs(
        round_s=round_s,
        round_s_error=round_error,
        cores=cores,
        cores_error=error,
        is_within_one_server=cores + error <= BUSY,
        messages_per_s=offers * (costs.up_messages + costs.down_messages) / fleet.round_every_s
        + _KINDS_OF_PRESENCE * joins_per_s,
        up_bytes_per_s=(offers * costs.up_bytes + reports * (fleet.adapter_bytes if fleet.sends_deltas else 0.0))
        / fleet.round_every_s,
        down_bytes_per_s=offers * (costs.down_bytes + fetched) / fleet.round_every_s,
        fetched_bytes=fetched,
        missed_rounds=missed,
        final_bytes=online * fleet.adapter_bytes,
        presence_s=online * costs.announcement_s.value,
        ledger_rows_per_day=rounds_per_day * offers * costs.ledger_report_rows,
        ledger_bytes_per_day=rounds_per_day * offers * costs.ledger_report_bytes.value,
        ledger_device_bytes=fleet.devices * costs.ledger_device_bytes.value,
        brokers=None if fleet.broker_sessions is None else math.ceil(online / fleet.broker_sessions),
        memory_bytes=fleet.devices * costs.memory_device_bytes,
        is_extrapolated=online > costs.most_online or reports > costs.most_reports,
        most_devices=None if by_rounds is None else min(by_rounds, by_restart),
        devices_end_with="restart" if by_rounds is not None and by_restart < by_rounds else "rounds",
        most_cohort=_most(BUSY - of_fleet, a_report),
    )


def _directions(costs: Costs, fleet: Fleet) -> float:
    return costs.directions if fleet.directions is None else float(fleet.directions)


def _parts(costs: Costs, fleet: Fleet, reports: float, online: float) -> list[tuple[Cost, float]]:
    """Return the costs of a round, and how often each arises."""
    parameters = fleet.adapter_bytes / _BYTES_PER_PARAMETER
    replayed = 0.0 if fleet.sends_deltas else reports * _directions(costs, fleet) * parameters
    return [
        (costs.fixed_s, 1.0),
        (costs.report_s, reports * fleet.over_selection),
        (costs.replayed_s, replayed),
        (costs.online_s, online),
    ]


def _sum(parts: list[tuple[Cost, float]]) -> tuple[float, float]:
    """Return the sum of costs, and two standard errors as if all erred to the same side."""
    return sum(c.value * times for c, times in parts), 2 * sum(c.error * times for c, times in parts)


def _most(left: float, each: float) -> int | None:
    return None if left < 0 else int(left / each)
