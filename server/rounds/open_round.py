"""The open attempt at a round, in memory and in the ledger in step: what is decided is written before it shows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.protocol.messages import RoundReport
from server import events
from server.job.job import enough_reports
from server.rounds import state_machine
from server.rounds.state_machine import OfferState, Round
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_runtime.protocol.messages import Report
    from server.events import Observer
    from server.job.job import Job
    from server.storage.ledger import Ledger
    from server.storage.records import RoundPlan, TakenDelta, TakenReport

_LOG = logging.getLogger(__name__)


class Offers:
    """One attempt at a round.

    Args:
        job: the job.
        ledger: where changes are written.
        observe: told what happens.
        plan: what the devices do.
        state: the attempt as it stands; open_offers and resume_offers make one.
    """

    def __init__(self, job: Job, ledger: Ledger, observe: Observer, plan: RoundPlan, state: Round) -> None:
        self._job = job
        self._ledger = ledger
        self._observe = observe
        self.plan = plan
        self.state = state

    def holds(self, device: str) -> bool:
        """Whether the device was offered this attempt."""
        return device in self.state.offers

    def is_current(self, index: int, attempt: int) -> bool:
        """Whether a message is about this attempt."""
        return (index, attempt) == (self.state.index, self.state.attempt)

    def waiting(self) -> list[str]:
        """Devices that have the plan, or should have it, and have not answered."""
        return [device for device, state in self.state.offers.items() if state in state_machine.PENDING]

    def count_bytes(self, device: str, *, up: int = 0, down: int = 0) -> None:
        """Count what travelled for a device's part."""
        self._ledger.add_bytes(self._job.name, self.state.index, self.state.attempt, device, up=up, down=down)

    def accept(self, device: str, size_bytes: int) -> None:
        """The device begins."""
        self.count_bytes(device, up=size_bytes)
        changed = state_machine.accept(self.state, device)
        if changed is not self.state:
            self.state = changed
            self._write(device, OfferState.ACCEPTED)

    def offer_again(self, device: str) -> None:
        """A device that has started anew may be waited for again."""
        changed = state_machine.offer_again(self.state, device)
        if changed is not self.state:
            self.state = changed
            self._write(device, OfferState.OFFERED)

    def lose(self, device: str, reason: str) -> None:
        """The device is gone."""
        self._fail(device, state_machine.lose(self.state, device), OfferState.LOST, reason)

    def refuse(self, device: str, reason: str) -> None:
        """The device will not report, or its report is of no use."""
        self._fail(device, state_machine.refuse(self.state, device), OfferState.REFUSED, reason)

    def _fail(self, device: str, changed: Round, state: OfferState, reason: str) -> None:
        if changed is self.state:
            return
        self.state = changed
        self._write(device, state, reason)
        self._observe(events.OfferFailed(round=changed.index, device=device, reason=reason))

    def _write(self, device: str, state: OfferState, detail: str | None = None) -> None:
        self._ledger.offer_is(self._job.name, self.state.index, self.state.attempt, device, state.value, detail)

    def record(self, device: str, report: Report, size_bytes: int) -> None:
        """Take a report that was judged ``taken`` and checked; a delta is in the blob store."""
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

    def taken(self) -> dict[str, TakenReport]:
        """Return the forward-only reports that count, from the ledger."""
        return queries.taken_reports(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def taken_deltas(self) -> dict[str, TakenDelta]:
        """Return the backprop reports that count, from the ledger."""
        return queries.taken_deltas(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def examples(self) -> dict[str, int]:
        """Return the rows of each device whose report counts, from the ledger."""
        return queries.taken_examples(self._ledger, self._job.name, self.state.index, self.state.attempt)

    def abandon(self) -> None:
        """Too few reports: give the attempt up."""
        self._ledger.abandon_round(self._job.name, self.state.index, self.state.attempt)
        reports = len(self.state.reported)
        self._observe(events.RoundAbandoned(round=self.state.index, attempt=self.state.attempt, reports=reports))


def open_offers(
    job: Job,
    ledger: Ledger,
    observe: Observer,
    index: int,
    attempt: int,
    plan: RoundPlan,
    base: tuple[str, float | None],
    cohort: Iterable[str],
    now: float,
) -> Offers:
    """Open an attempt and enter it; ``base`` is the adapter's hash and the mean square that the plans carry."""
    names = sorted(cohort)
    levels = {name: plan.levels.get(name) for name in names}
    ledger.open_round(job.name, index, attempt, msgspec.json.encode(plan).decode(), *base, levels)
    state = state_machine.open_round(
        index, attempt, names, now + plan.deadline_s(job), job.min_reports, enough_reports(job, len(names))
    )
    observe(events.RoundOpened(round=index, attempt=attempt, devices=names))
    return Offers(job, ledger, observe, plan, state)


def resume_offers(job: Job, ledger: Ledger, observe: Observer, now: float) -> Offers | None:
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
    return Offers(job, ledger, observe, found.plan, state)
