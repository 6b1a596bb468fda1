"""What a simulation counts beside the ledger: messages and bytes by kind, who is here, how long rounds take."""

from __future__ import annotations

import collections
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server import events
from server.simulation.availability import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.events import Event, Observer


@dataclass
class Traffic:
    """Messages and bytes between the server and the devices; TCP, TLS, MQTT headers and signatures not counted.

    Attributes:
        presence_messages: births, profiles and states that the server got.
        presence_bytes: their bytes.
        report_messages: acceptances, reports and proofs that the server got.
        report_bytes: their bytes, and those of deltas.
        plan_messages: plans and answers to reports that the server sent to devices.
        plan_bytes: their bytes.
        logs: logs that devices fetched because they had missed few rounds.
        log_bytes: their bytes.
        files: adapters that devices fetched whole.
        file_bytes: their bytes.
        gaps: how many rounds lay between two offers to one device, and how often.
    """

    presence_messages: int = 0
    presence_bytes: int = 0
    report_messages: int = 0
    report_bytes: int = 0
    plan_messages: int = 0
    plan_bytes: int = 0
    logs: int = 0
    log_bytes: int = 0
    files: int = 0
    file_bytes: int = 0
    gaps: collections.Counter[int] = field(default_factory=collections.Counter)

    def result(self) -> dict[str, Any]:
        """Return the counts, and the median number of rounds between two offers to one device."""
        gaps = sorted(self.gaps.elements())
        return {
            "presence_messages": self.presence_messages,
            "presence_bytes": self.presence_bytes,
            "report_messages": self.report_messages,
            "bytes_up": self.report_bytes,
            "plan_messages": self.plan_messages,
            "plan_bytes": self.plan_bytes,
            "logs_fetched": self.logs,
            "adapters_fetched": self.files,
            "bytes_fetched": self.log_bytes + self.file_bytes,
            "median_rounds_between_offers": statistics.median(gaps) if gaps else None,
        }


class Pace:
    """How long rounds take and what lies between them, and how many devices are here, in virtual time.

    Args:
        clock: virtual seconds.
        observe: gets every event.
    """

    def __init__(self, clock: Callable[[], float], observe: Observer) -> None:
        self._clock, self._observe = clock, observe
        self._opened_at: float | None = None
        self._closed_at = 0.0
        self._rounds_s: list[float] = []
        self._waits_s: list[float] = []
        self._here: tuple[float, int] | None = None
        self._device_s, self._least, self._most = 0.0, 0, 0

    def observe(self, event: Event) -> None:
        """Take in an event of the job, and hand it on."""
        if isinstance(event, events.RoundOpened):
            self._opened_at = self._clock()
            self._waits_s.append(self._opened_at - self._closed_at)
        elif isinstance(event, (events.RoundClosed, events.RoundAbandoned)) and self._opened_at is not None:
            self._closed_at = self._clock()
            if isinstance(event, events.RoundClosed):
                self._rounds_s.append(self._closed_at - self._opened_at)
        self._observe(event)

    def here(self, devices: int) -> None:
        """Take in that so many devices are here from now on."""
        now = self._clock()
        if self._here is None:
            self._least = self._most = devices
        else:
            since, before = self._here
            self._device_s += before * (now - since)
        self._least, self._most = min(self._least, devices), max(self._most, devices)
        self._here = (now, devices)

    def result(self) -> dict[str, Any]:
        """Return the figures; those that nothing is known of are None."""
        if self._here is not None:
            self.here(self._here[1])
        now = self._clock()
        return {
            "devices_here": {"least": self._least, "mean": self._device_s / now if now else None, "most": self._most},
            "rounds_per_day": len(self._rounds_s) * DAY_S / now if now else None,
            "round_s": _spread(self._rounds_s),
            "wait_s": _spread(self._waits_s),
        }


@dataclass(frozen=True)
class Counted:
    """All that a simulation counts."""

    traffic: Traffic
    pace: Pace


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "most": max(values)}
