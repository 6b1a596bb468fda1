"""What the sessions of a swarm have seen: numbers that add up over processes and over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_ROUND_TRIPS = 1_000_000
"""Round-trips that are kept, the last ones: percentiles are of these."""


@dataclass
class Counts:
    """What all sessions have seen together.

    Attributes:
        devices_connected: sessions that the broker has let in at least once.
        connects: logins that the broker took.
        disconnects: connections that ended: broken ones, and those that the swarm has ended.
        lost_connections: connections that broke.
        refused_logins: attempts to log in that failed, by kind of cause (edge_runtime.network.cause.Kind).
        messages_up: messages given to the broker.
        messages_down: messages received.
        bytes_up: their payloads.
        bytes_down: their payloads.
        refused: messages whose signature or form was refused.
        check_s: CPU seconds of checking signatures.
        checked: signatures checked.
        sign_s: CPU seconds of signing.
        hellos: hellos of the server that sessions have answered.
        plans: attempts at rounds that sessions were asked for.
        plans_refused: plans that sessions could not do.
        trained: rounds that sessions have trained.
        training_s: seconds of their local steps.
        abandoned: rounds that were given up in training, or before it: too late, or another plan had come.
        reports: answers to reports by outcome (protocol.reports.ReportAck); a repeated one counts once.
        lost_reports: reports that the server has not answered until the next plan came, or until the end.
        proved: sessions that have proved to have an adapter, by its hash.
        round_trips_s: seconds from each plan to the answer to its report.
    """

    devices_connected: int = 0
    connects: int = 0
    disconnects: int = 0
    lost_connections: int = 0
    refused_logins: Counter[str] = field(default_factory=Counter)
    messages_up: int = 0
    messages_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    refused: int = 0
    check_s: float = 0.0
    checked: int = 0
    sign_s: float = 0.0
    hellos: int = 0
    plans: int = 0
    plans_refused: int = 0
    trained: int = 0
    training_s: float = 0.0
    abandoned: int = 0
    reports: Counter[str] = field(default_factory=Counter)
    lost_reports: int = 0
    proved: Counter[str] = field(default_factory=Counter)
    round_trips_s: list[float] = field(default_factory=list)

    @property
    def connected(self) -> int:
        """Sessions that are connected now."""
        return self.connects - self.disconnects

    @property
    def acknowledged(self) -> int:
        """Reports that the server has answered, whatever it said."""
        return self.reports.total()

    def take(self) -> Counts:
        """Return what was counted since the last time, and begin anew: sessions hold this object."""
        taken, fresh = Counts(), Counts()
        for one in fields(self):
            setattr(taken, one.name, getattr(self, one.name))
            setattr(self, one.name, getattr(fresh, one.name))
        return taken

    def add(self, other: Counts) -> None:
        """Add what others have seen."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, mine + theirs)
        del self.round_trips_s[:-MOST_ROUND_TRIPS]


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which a share (0 to 1) of ascending values lies, by nearest rank; None: there is none."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
