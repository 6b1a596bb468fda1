"""A round as a state machine, without I/O and without a clock of its own.

::

    offered ──► accepted ──► reported
       │            │
       └────────────┴──► refused | lost          round: open ──► aggregated | abandoned

A report counts exactly once per (job, round, attempt, device): a duplicate, late or foreign one changes nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Outcome = Literal["taken", "duplicate", "late", "unknown"]
Decision = Literal["wait", "aggregate", "abandon"]


class OfferState(str, Enum):
    """What became of the offer to one device."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    REPORTED = "reported"
    REFUSED = "refused"
    LOST = "lost"


PENDING = (OfferState.OFFERED, OfferState.ACCEPTED)


@dataclass(frozen=True)
class Round:
    """An attempt at a round.

    Attributes:
        index: index of the round, from 0.
        attempt: number of the attempt, from 0.
        deadline_at: when reports stop counting, in seconds of the caller's clock.
        min_reports: number of reports that an aggregation at the deadline needs.
        enough_reports: number of reports that end the round at once; further devices are a reserve.
        offers: state of the offer to each device, by name.
    """

    index: int
    attempt: int
    deadline_at: float
    min_reports: int
    enough_reports: int
    offers: Mapping[str, OfferState]

    def count(self, *states: OfferState) -> int:
        """Return how many offers are in one of these states."""
        return sum(self.counts[state] for state in states)

    @functools.cached_property
    def counts(self) -> collections.Counter[OfferState]:
        """Number of offers in each state; counted once, then carried along with each move."""
        return collections.Counter(self.offers.values())

    @property
    def reported(self) -> list[str]:
        """Devices whose reports were taken, sorted by name."""
        return sorted(device for device, state in self.offers.items() if state is OfferState.REPORTED)


def open_round(
    index: int, attempt: int, devices: Iterable[str], deadline_at: float, min_reports: int, enough_reports: int
) -> Round:
    """Return a new attempt that is offered to these devices."""
    offers = dict.fromkeys(sorted(devices), OfferState.OFFERED)
    return Round(index, attempt, deadline_at, min_reports, enough_reports, offers)


def accept(state: Round, device: str) -> Round:
    """The device has accepted the plan and begins."""
    return _move(state, device, OfferState.ACCEPTED) if state.offers.get(device) is OfferState.OFFERED else state


def judge(state: Round, device: str, index: int, attempt: int, now: float) -> Outcome:
    """Decide whether a report is taken, before it is recorded."""
    if (index, attempt) < (state.index, state.attempt):
        return "late"
    if (index, attempt) > (state.index, state.attempt) or device not in state.offers:
        return "unknown"
    if state.offers[device] is OfferState.REPORTED:
        return "duplicate"
    return "taken" if now <= state.deadline_at else "late"


def report(state: Round, device: str) -> Round:
    """Record a report that was judged ``taken``; a device that was lost or had refused may still report in time."""
    return _move(state, device, OfferState.REPORTED)


def refuse(state: Round, device: str) -> Round:
    """The device cannot train in this round."""
    return _move(state, device, OfferState.REFUSED) if state.offers.get(device) in PENDING else state


def lose(state: Round, device: str) -> Round:
    """The device is gone; the round no longer waits for its report."""
    return _move(state, device, OfferState.LOST) if state.offers.get(device) in PENDING else state


def offer_again(state: Round, device: str) -> Round:
    """A lost device is back before the deadline, and gets the plan again."""
    return _move(state, device, OfferState.OFFERED) if state.offers.get(device) is OfferState.LOST else state


def decide(state: Round, now: float) -> Decision:
    """Decide by the reports, the deadline and the devices that have not answered: wait, aggregate or abandon."""
    reports, pending = state.count(OfferState.REPORTED), state.count(*PENDING)
    if reports >= state.enough_reports or (pending == 0 and reports >= state.min_reports):
        return "aggregate"
    if now > state.deadline_at or pending == 0:
        return "aggregate" if reports >= state.min_reports else "abandon"
    return "wait"


def _move(state: Round, device: str, to: OfferState) -> Round:
    if device not in state.offers:
        return state
    offers, counts = dict(state.offers), state.counts.copy()
    counts[offers[device]] -= 1
    counts[to] += 1
    offers[device] = to
    moved = dataclasses.replace(state, offers=offers)
    vars(moved)["counts"] = counts  # so that no message counts all offers again
    return moved
