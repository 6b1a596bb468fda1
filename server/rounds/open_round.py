"""The round attempt that is currently open. Every decision is written to the ledger before it takes effect."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.protocol.reports import RoundReport
from server import events
from server.bandit.arms import Arm
from server.fleet.exclusion import rejection
from server.job.job import enough_reports
from server.rounds import state_machine
from server.rounds.state_machine import OfferState, Round
from server.storage import queries

if TYPE_CHECKING:
    from edge_runtime.protocol.reports import Report
    from server.events import Observer
    from server.job.job import Job
    from server.planning.planner import DrawnRound
    from server.storage.adapters import RoundBase
    from server.storage.ledger import Ledger
    from server.storage.records import RoundPlan, TakenDelta, TakenReport

_LOG = logging.getLogger(__name__)


class OpenRound:
    """An open attempt at a round. ``begin_attempt`` and ``resume_attempt`` make one.

    Args:
        job: the job.
        ledger: every change is written to it.
        observe: receives events.
        plan: what the devices do.
        state: state of each offer.
        offered_at: when the offers were made, in seconds of the server's clock.

    Attributes:
        plan: what the devices do.
        state: state of each offer.
        rejected: devices whose report was wrong, since this start of the server.
        swept_epoch: the epoch in which those were left out who had not answered its hello; None: none yet.
    """

    def __init__(
        self, job: Job, ledger: Ledger, observe: Observer, plan: RoundPlan, state: Round, offered_at: float
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._observe = observe
        self.plan = plan
        self.state = state
        self.rejected: set[str] = set()
        self.swept_epoch: str | None = None
        self._offered_at = dict.fromkeys(state.offers, offered_at)  # the earliest offer first

    def holds(self, device: str) -> bool:
        """Whether the attempt was offered to the device."""
        return device in self.state.offers

    def is_current(self, index: int, attempt: int) -> bool:
        """Whether a message about this round and attempt is about this one."""
        return (index, attempt) == (self.state.index, self.state.attempt)

    def waiting(self) -> list[str]:
        """Return the devices that have not answered with a report or a refusal yet, and are not lost."""
        return [device for device, state in self.state.offers.items() if state in state_machine.PENDING]

    def count_bytes(self, device: str, *, up: int = 0, down: int = 0) -> None:
        """Add bytes that travelled for an offer, from the device (``up``) and to it (``down``)."""
        self._ledger.add_bytes(self._job.name, self.state.index, self.state.attempt, device, up=up, down=down)

    def accept(self, device: str, size_bytes: int) -> None:
        """Enter that the device has begun; ``size_bytes`` is the size of its message."""
        self.count_bytes(device, up=size_bytes)
        changed = state_machine.accept(self.state, device)
        if changed is not self.state:
            self.state = changed
            self._write(device, OfferState.ACCEPTED)

    def unaccepted(self, now: float) -> dict[str, float]:
        """Return when the offer was made to each device that has let the job's ``accept_s`` pass without an answer.

        It is asked after every message, so it looks at no offer that is younger, and at no answered one twice.
        """
        passed = list(itertools.takewhile(lambda made: now - made[1] > self._job.accept_s, self._offered_at.items()))
        for device, _ in passed:
            if self.state.offers[device] is not OfferState.OFFERED:
                del self._offered_at[device]
        return {device: made_at for device, made_at in passed if device in self._offered_at}

    def offer_again(self, device: str, now: float) -> None:
        """Wait again for a lost device that is back."""
        self._offered_at.pop(device, None)
        self._offered_at[device] = now
        changed = state_machine.offer_again(self.state, device)
        if changed is not self.state:
            self.state = changed
            self._write(device, OfferState.OFFERED)

    def lose(self, device: str, reason: str) -> None:
        """Enter that the device is gone."""
        self._fail(device, state_machine.lose(self.state, device), OfferState.LOST, reason)

    def refuse(self, device: str, reason: str) -> None:
        """Enter that the device will not report."""
        self._fail(device, state_machine.refuse(self.state, device), OfferState.REFUSED, reason)

    def reject(self, device: str, reason: str) -> None:
        """Enter that the device's report is wrong; a right one may still come in time."""
        self.rejected.add(device)
        self.refuse(device, rejection(reason))

    def _fail(self, device: str, changed: Round, state: OfferState, reason: str) -> None:
        if changed is self.state:
            return
        self.state = changed
        self._write(device, state, reason)
        self._observe(events.OfferFailed(round=changed.index, device=device, reason=reason))

    def _write(self, device: str, state: OfferState, detail: str | None = None) -> None:
        self._ledger.offer_is(self._job.name, self.state.index, self.state.attempt, device, state.value, detail)

    def record(self, device: str, report: Report, size_bytes: int) -> None:
        """Enter a report that was judged ``taken`` and checked; the delta of a backprop report is in the blob store."""
        values: dict[str, Any] = {"examples": report.examples, "loss": report.loss, "seconds": report.seconds}
        if isinstance(report, RoundReport):
            values |= {
                "scalars": report.scalars,
                "front_passes": report.front_passes,
                "back_passes": report.back_passes,
                "front_seconds": report.front_seconds,
                "back_seconds": report.back_seconds,
            }
            sent_bytes = size_bytes
        else:
            values |= {
                "delta_sha256": report.delta.sha256,
                "layers": msgspec.json.encode(report.layers).decode(),
                "personal_layers": report.personal_layers,
                "peak_rss_bytes": report.peak_rss_bytes,
            }
            sent_bytes = size_bytes + report.delta.size_bytes
        with self._ledger.transaction():
            self._ledger.take_report(self._job.name, self.state.index, self.state.attempt, device, values)
            self.count_bytes(device, up=sent_bytes, down=report.blob_bytes)
        self.state = state_machine.report(self.state, device)
        self._observe(
            events.ReportTaken(
                round=self.state.index, device=device, loss=report.loss, seconds=report.seconds, bytes_up=sent_bytes
            )
        )

    def reports(self) -> dict[str, TakenReport]:
        """Return the forward-only reports that were taken, by device, from the ledger."""
        return queries.taken_reports(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def deltas(self) -> dict[str, TakenDelta]:
        """Return the backprop reports that were taken, by device, from the ledger."""
        return queries.taken_deltas(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def examples(self) -> dict[str, int]:
        """Return the number of rows of each device whose report was taken, from the ledger."""
        return queries.taken_examples(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def abandon(self) -> None:
        """Give the attempt up: it has too few reports."""
        self._ledger.abandon_round(self._job.name, self.state.index, self.state.attempt)
        reports = len(self.state.reported)
        self._observe(events.RoundAbandoned(round=self.state.index, attempt=self.state.attempt, reports=reports))


def begin_attempt(
    job: Job, ledger: Ledger, observe: Observer, drawn: DrawnRound, base: RoundBase, now: float
) -> OpenRound:
    """Enter an attempt at a round and return it.

    Args:
        job: the job.
        ledger: the attempt is entered in it.
        observe: receives events.
        drawn: the devices and their plan.
        base: the adapter that the devices start from.
        now: seconds of the server's clock.
    """
    plan = drawn.plan
    names = sorted(drawn.devices)
    levels = {name: plan.levels.get(name) for name in names}
    encoded = msgspec.json.encode(plan).decode()
    ledger.open_round(job.name, drawn.index, drawn.attempt, encoded, base.sha256, base.mean_square, levels)
    deadline_at = now + plan.deadline_s(job)
    enough = enough_reports(job, len(names))
    state = state_machine.open_round(drawn.index, drawn.attempt, names, deadline_at, job.min_reports, enough)
    arms = {name: _arm_name(plan, name) for name in names}
    observe(events.RoundOpened(round=drawn.index, attempt=drawn.attempt, devices=names, arms=arms))
    return OpenRound(job, ledger, observe, plan, state, now)


def _arm_name(plan: RoundPlan, device: str) -> str:
    rule = plan.rule_of(device)
    if device in plan.levels:
        frozen = rule.front_is_frozen
        split = plan.split if frozen else None
        return Arm("backprop", level=plan.levels[device], split=split, front_is_frozen=frozen).name
    return Arm(
        "forward",
        split=plan.split,
        back_perturbations=rule.back_perturbations,
        front_is_frozen=rule.front_is_frozen,
    ).name


def resume_attempt(job: Job, ledger: Ledger, observe: Observer, now: float) -> OpenRound | None:
    """Return the attempt that was open when the server stopped, with its reports and a new deadline; None: none was."""
    found = queries.open_attempt(ledger, job.name)
    if found is None:
        return None
    states = {device: OfferState(state) for device, state in found.offers.items()}
    state = Round(
        index=found.index,
        attempt=found.attempt,
        deadline_at=now + found.plan.deadline_s(job),
        min_reports=job.min_reports,
        enough_reports=enough_reports(job, len(states)),
        offers=states,
    )
    _LOG.info("resumed in round %d with %d reports", state.index, len(state.reported))
    return OpenRound(job, ledger, observe, found.plan, state, now)
