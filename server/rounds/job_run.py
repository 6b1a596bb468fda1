"""One job that runs: draws up its rounds, sends its plans, takes its reports, and writes the ledger before it acts.

A step never waits: several jobs take turns in one thread (coordinator.py).
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.network.reconnect_pauses import LONGEST_PAUSE_S
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import AdapterRef, SyncPlan
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused, ReportAck, Synced
from edge_runtime.protocol.topics import topic_for
from server import events
from server.errors import JobError
from server.fleet.devices import SILENT, Device, ineligible, resting
from server.fleet.exclusion import own_refusal
from server.fleet.looks import Looks
from server.fleet.mirrors import mirror_for
from server.planning.feedback import LossMeasured, PlanSent, RoundClosing, RoundResumed
from server.planning.planner import Planner
from server.rounds import state_machine
from server.rounds.closing import close_round
from server.rounds.exclusions import Exclusions
from server.rounds.failure import failure_hint
from server.rounds.final_sync import FinalSync
from server.rounds.least_versions import LeastVersions
from server.rounds.open_round import OpenRound, begin_attempt, resume_attempt
from server.rounds.patience import patiently
from server.rounds.plans import Plans
from server.rounds.reports import Reports
from server.rounds.state_machine import OfferState
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.protocol.plans import Plan
    from edge_runtime.protocol.reports import DeviceReport
    from edge_runtime.values import FloatVector
    from server.events import Observer
    from server.job.fitted import FittedJob
    from server.rounds.roster import Roster
    from server.rounds.services import Services
    from server.storage.adapters import AdapterChain
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_RETURN_S = LONGEST_PAUSE_S + 10.0
"""Seconds that devices may need to come back to a server that has restarted: their pauses grow while it is away."""


class JobRun:
    """One job at work; ``server.compose`` makes it.

    Args:
        roster: the fleet's devices.
        fitted: the job and its bundle.
        ledger: the job is entered in it.
        chain: the job's adapters so far.
        services: what it uses of the outside world.
        observe: receives events.
        has: whether a device works for this job.

    Attributes:
        fitted: the job and its bundle.
        chain: the job's adapters.
        is_pausing: set it, and no round is opened any more.
        waiting_for: why no round can be opened; None: one is open, or none was tried.
    """

    def __init__(
        self,
        roster: Roster,
        fitted: FittedJob,
        ledger: Ledger,
        chain: AdapterChain,
        services: Services,
        observe: Observer,
        has: Callable[[Device], bool] = lambda _device: True,
    ) -> None:
        self.fitted, self._job = fitted, fitted.job
        self.chain = chain
        self.is_pausing = False
        self.waiting_for: events.Waiting | None = None
        self._roster = roster
        self._ledger = ledger
        self._services, self._clock = services, services.clock
        self.observe = observe
        self._has = has
        self._open: OpenRound | None = None
        self._sync: FinalSync | None = None
        self._to_evaluate: tuple[int | None, FloatVector] | None = None
        self._is_evaluating = False
        self._should_stop: Callable[[], bool] = lambda: False
        self._failed_attempts = 0  # of the current round, since this start
        self._all_until: float | None = None  # until then the first round since this start waits for min_devices
        self._looks = Looks()
        self._planner = Planner(fitted, ledger)
        self._plans = Plans(fitted, services.blob_url)
        self._exclusions = Exclusions(fitted.job, ledger)
        self._least_versions = LeastVersions(fitted, roster, services.transport)
        self._reports = Reports(fitted, chain, services.uploads, self._exclusions, self._planner.learn)

    @property
    def name(self) -> str:
        """Name of the job."""
        return self._job.name

    @property
    def excluded(self) -> dict[str, str]:
        """Why each device is that the job excludes, by name."""
        return dict(self._exclusions.reasons)

    @property
    def is_idle(self) -> bool:
        """Whether no round is open and no adapter is being evaluated: it can be paused without a loss."""
        return self._open is None and self._to_evaluate is None and not self._is_evaluating

    def begin(self, *, resumed: bool, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Begin to run; step goes on from there.

        Args:
            resumed: whether to resume the round that is open in the ledger.
            should_stop: asked while something is tried again, for want of file descriptors.
        """
        self._should_stop = should_stop
        self._all_until = self._clock() + self._job.accept_s
        if resumed:
            self._resume()
        entered = queries.find_job(self._ledger, self._job.name)
        if entered is not None and entered.loss_start is None:
            self._evaluate(None)

    def step(self) -> bool:
        """Do what is due; return whether the job is finished.

        Raises:
            JobError: a round failed ``max_attempts`` times.
            StorageError: the ledger or a blob cannot be written; the job can be resumed.
        """
        self._collect_evaluation()
        if self._open is not None:
            self._decide(self._open)
        if self._open is not None or self._to_evaluate is not None:
            return False
        if len(self.chain.closed) >= self._job.rounds:
            return not self._is_evaluating and self._finish()
        if not self.is_pausing:
            with self._services.together():
                self._try_to_open()
        return False

    def close(self) -> None:
        """Release the evaluator; an open round stays open in the ledger."""
        self._services.evaluator.close()

    def abandon(self) -> None:
        """Give up the open round, if there is one: the job is stopped."""
        if self._open is not None:
            self._abandon(self._open)

    def _resume(self) -> None:
        opened = self._open = resume_attempt(self._job, self._ledger, self.observe, self._clock())
        if opened is not None:
            self._planner.learn(RoundResumed(opened.state.index, opened.state.attempt))
            with self._services.together():
                for name in opened.waiting():
                    self._send_plan(opened, name)

    # -- what the fleet reports ---------------------------------------------------------------------------------

    def devices(self) -> dict[str, Device]:
        """Return the devices that work for this job, by name."""
        found = {}
        for name, device in self._roster.devices.items():
            if self._has(device) and device.quarantine is None:
                self._roster.works_on(device, self.fitted.bundle_sha256)
                self._least_versions.judge(device)
                found[name] = device
        return found

    def connected_anew(self, device: Device) -> None:
        """Send a device its plan again: it may have lost it with its memory, or the broker with its store."""
        if self._sync is not None:
            self._sync.connected_anew(device.name)
        opened = self._open
        if opened is not None and opened.holds(device.name):
            opened.offer_again(device.name, self._clock())
            if device.name in opened.waiting():
                self._send_plan(opened, device.name)

    def gone(self, device: Device) -> None:
        """Enter that a device is gone; its state says how."""
        if self._open is not None:
            self._open.lose(device.name, device.state)

    def plan_given_up(self, device: Device, plan: Plan, reason: str) -> None:
        """Leave a device out of the open round: the broker does not take its plan."""
        opened = self._open
        if isinstance(plan, SyncPlan) or opened is None or not opened.is_current(plan.round, plan.attempt):
            return
        if opened.holds(device.name):
            self._roster.rests(device, reason, self._clock())
            opened.refuse(device.name, reason)

    def take_report(self, device: Device, report: DeviceReport, size_bytes: int) -> ReportAck | None:
        """Take a report of this job; return the answer to it, None where it needs none."""
        if isinstance(report, Synced):
            return None
        if isinstance(report, (PlanAccepted, PlanRefused)):
            if self._open is not None and self._open.is_current(report.round, report.attempt):
                self._take_answer(device, self._open, report, size_bytes)
            return None
        ack = self._reports.take(device, self._open, report, size_bytes, self._clock())
        if ack.outcome == "taken":
            self._roster.may_work(device)
            self._roster.prove(device, report.adapter_sha256)
        return ack

    def _take_answer(
        self, device: Device, opened: OpenRound, answer: PlanAccepted | PlanRefused, size_bytes: int
    ) -> None:
        if isinstance(answer, PlanAccepted):
            if device.is_here:  # a late answer; the message of a device that has died since changes nothing
                opened.offer_again(device.name, self._clock())
            opened.accept(device.name, size_bytes)
        else:
            if not self._reports.note_refusal(device, opened, answer):
                self._roster.rests(device, answer.message, self._clock())
            opened.refuse(device.name, own_refusal(answer.message))

    # -- rounds -------------------------------------------------------------------------------------------------

    def _try_to_open(self) -> None:
        come_back = self._all_until is not None and self._clock() < self._all_until  # after a restart of the server
        needed = self._job.devices_to_start if come_back or not self.chain.closed else self._job.min_reports
        if not self._looks.is_due(self._roster.devices, needed, self._clock()):
            return
        devices = self.devices()
        index, out = len(self.chain.closed), self._exclusions.reasons
        eligible = [name for name in self._planner.eligible(devices, index, self._clock()) if name not in out]
        early = self._planner.early(devices, index)
        # Devices that begin in a later round are there as well; only a round's reports must come from the others.
        online = len(eligible) + len(early.keys() - out.keys())
        if online >= needed:
            online, needed = len(eligible), min(needed, self._job.min_reports)
        if online < needed:
            waiting = events.Waiting(
                online=online,
                needed=needed,
                ineligible=early | ineligible(devices) | {name: out[name] for name in sorted(out) if name in devices},
                resting=resting(devices, self._clock()),
            )
            self._looks.was_in_vain(len(self._roster.devices), self._clock())
            if self.waiting_for != waiting:
                self.waiting_for = waiting
                self.observe(waiting)
            return
        self.waiting_for = self._all_until = None
        attempt = queries.count_attempts(self._ledger, self._job.name, index)
        if self._failed_attempts >= self._job.max_attempts:
            self._ledger.end_job(self._job.name, "failed", None)
            raise JobError(
                f"round {index} had fewer than {self._job.min_reports} reports in {self._failed_attempts} attempts",
                failure_hint(queries.offers_of(self._ledger, self._job.name), index),
            )
        history = [closed.figures for closed in self.chain.closed]
        now = self._clock()
        drawn = self._planner.draw_up(devices, eligible, index, attempt, history, now)
        opened = self._open = begin_attempt(self._job, self._ledger, self.observe, drawn, self.chain.base, now)
        for name in drawn.devices:
            self._send_plan(opened, name)

    def _send_plan(self, opened: OpenRound, name: str) -> None:
        plan = self._plans.training(opened, name, self._reference(name), self.chain.mean_square, self._clock())
        opened.count_bytes(name, down=self._publish(name, plan))
        self._planner.learn(PlanSent(name, self._clock()))

    def _publish(self, name: str, plan: Plan) -> int:
        """Publish a device's plan, with the mirror where there is one that it knows; return the message's bytes."""
        device = self._roster.devices.get(name) or Device(name)
        plan = msgspec.structs.replace(plan, blob_mirror=mirror_for(device.birth, self._services.blob_mirror))
        payload = encode_message(plan)
        self._services.transport.publish(topic_for(self._roster.fleet, name, "plan"), payload)
        return len(payload)

    def _reference(self, name: str) -> AdapterRef:
        device = self._roster.devices.get(name) or Device(name)
        return self.chain.reference(device.adapter_sha256, device.link_bytes_per_s, device.replay_parameters_per_s)

    def _give_up_the_silent(self, opened: OpenRound) -> None:
        """Stop waiting for devices that have not accepted their plan, or have not answered the last hello, in time."""
        now, accept_s = self._clock(), self._job.accept_s
        unaccepted = opened.unaccepted(now)
        with self._services.together() if unaccepted else contextlib.nullcontext():
            for name, offered_at in unaccepted.items():
                device = self._roster.device(name)
                reason = f"it did not accept the plan within {accept_s:g} s"
                if device.heard_at is None or device.heard_at < offered_at:
                    self._roster.keeps_silent(device, reason, now)
                opened.lose(name, reason)
        if now - self._roster.epoch_began_at > accept_s and opened.swept_epoch != self._roster.epoch:
            opened.swept_epoch = self._roster.epoch  # once: who answers later is not silent, who begins is not offered
            for name in opened.waiting():
                if self._roster.device(name).state == SILENT:
                    opened.lose(name, f"it has not answered within {accept_s:g} s of the server's hello")

    def _decide(self, opened: OpenRound) -> None:
        self._give_up_the_silent(opened)
        decision = state_machine.decide(opened.state, self._clock())
        if decision == "aggregate":
            self._aggregate(opened)
            self._open = None
            self._failed_attempts = 0
        elif decision == "abandon":
            refused = opened.state.count(OfferState.REFUSED)
            everybody_refused = refused == len(opened.state.offers) and not opened.rejected
            self._abandon(opened)
            # Where everybody has refused, all of them rest: the job waits for them, and no attempt is used up.
            self._failed_attempts += 0 if everybody_refused else 1

    def _abandon(self, opened: OpenRound) -> None:
        deltas = opened.deltas()
        opened.abandon()
        for delta in deltas.values():
            self._services.uploads.blobs.remove(delta.sha256)
        self._services.uploads.forget_all(self.name)
        self._open = None

    def _aggregate(self, opened: OpenRound) -> None:
        uploads, chain = self._services.uploads, self.chain
        reports = len(opened.state.reported)
        self._planner.learn(RoundClosing(opened.state.index, opened.examples(), self._clock()))
        closed = patiently(
            lambda: close_round(self.fitted, self._ledger, chain, uploads.blobs, opened), self._should_stop
        )
        uploads.forget_all(self.name)
        self.observe(events.RoundClosed(round=closed.index, reports=reports, adapter_sha256=closed.result_sha256))
        if (closed.index + 1) % self._job.eval_every == 0 or closed.index + 1 == self._job.rounds:
            self._evaluate(closed.index)

    # -- evaluation and the end ---------------------------------------------------------------------------------

    def _evaluate(self, index: int | None) -> None:
        """Evaluate the current adapter once the last evaluation is done; no round is opened before it begins."""
        self._to_evaluate = (index, self.chain.theta)
        self._collect_evaluation()

    def _collect_evaluation(self) -> None:
        evaluator = self._services.evaluator
        collected = evaluator.collect() if self._is_evaluating else None
        if collected is not None:
            self._is_evaluating = False
            index, result = collected
            if index is None:
                self._ledger.start_evaluated(self._job.name, result.loss, result.accuracy)
            else:
                self._ledger.round_evaluated(self._job.name, index, result.loss, result.accuracy)
            self._planner.learn(LossMeasured(index, result.loss))
            self.observe(events.Evaluated(round=index, loss=result.loss, accuracy=result.accuracy))
        if self._to_evaluate is not None and not self._is_evaluating:
            evaluator.start(*self._to_evaluate)
            self._to_evaluate, self._is_evaluating = None, True

    def _finish(self) -> bool:
        """Send the final adapter to every device of the job; return whether all that are here have proved it."""
        if self._sync is None:
            took_part = set(queries.last_round_per_device(self._ledger, self._job.name))
            self._sync = FinalSync(self._clock(), took_part)
        elif not self._looks.is_due(self._roster.devices, 0, self._clock()):
            return False
        self._looks.was_in_vain(len(self._roster.devices), self._clock())
        devices = self.devices()
        here = {name for name, device in devices.items() if device.is_here and device.too_old is None}
        for name in self._sync.to_send(here):
            self._publish(name, self._plans.final_sync(len(self.chain.closed), self._reference(name)))
        proved = {name for name, device in devices.items() if device.adapter_sha256 == self.chain.sha256}
        self.observe(self._sync.progress(proved))
        now = self._clock()
        may_answer = now - self._roster.epoch_began_at <= max(self._job.accept_s, _RETURN_S)
        heard = {name for name, device in devices.items() if device.birth is not None and device.state != SILENT}
        return self._sync.is_over(here, proved, heard if may_answer else None, now)
