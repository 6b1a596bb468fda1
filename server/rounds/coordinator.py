"""Coordinates one job: reads the devices' messages, drives the rounds, and writes the ledger before it acts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.errors import CoveyError, ProtocolError
from edge_runtime.network.transport import Connected
from edge_runtime.protocol.messages import (
    AdapterRef,
    Birth,
    DeviceReport,
    DeviceState,
    Hello,
    PlanAccepted,
    PlanRefused,
    Synced,
    decode_device_report,
    decode_message,
    encode_message,
)
from edge_runtime.protocol.topics import device_of, hello_topic, topic_for
from server import events
from server.errors import JobError
from server.fleet.devices import SILENT, Device, ineligible, resting
from server.fleet.rest import next_rest
from server.planning.feedback import LossMeasured, PlanSent, RoundClosing, RoundResumed
from server.planning.planner import Planner
from server.rounds import state_machine
from server.rounds.closing import close_round
from server.rounds.failure import failure_hint
from server.rounds.open_round import OpenRound, begin_attempt, resume_attempt
from server.rounds.patience import patiently
from server.rounds.plans import Plans
from server.rounds.reports import Reports
from server.rounds.roster import Roster
from server.rounds.state_machine import OfferState
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.network.transport import Message
    from server.events import Observer
    from server.job.fitted import FittedJob
    from server.rounds.services import Services
    from server.storage.adapters import AdapterChain
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_TICK_S = 0.5
"""Seconds that the loop waits for a message before it looks at the deadline."""
_FINAL_SYNC_S = 60.0
"""Seconds within which the devices must prove the final adapter."""
_GONE_S = 3.0
"""Seconds that the coordinator waits for a proof from devices that have left."""


class Coordinator:
    """One job's coordinator; ``server.compose`` makes it.

    Args:
        fleet: name of the fleet.
        fitted: the job and its bundle.
        ledger: the job is entered in it.
        chain: the job's adapters so far.
        services: what it uses of the outside world.
        observe: receives events.
    """

    def __init__(
        self, fleet: str, fitted: FittedJob, ledger: Ledger, chain: AdapterChain, services: Services, observe: Observer
    ) -> None:
        self._fleet = fleet
        self._fitted, self._job = fitted, fitted.job
        self._ledger = ledger
        self._chain = chain
        self._services, self._clock = services, services.clock
        self._observe = observe
        self._open: OpenRound | None = None
        self._waiting_for: events.Waiting | None = None
        self._should_stop: Callable[[], bool] = lambda: False
        self._final_sent: set[str] = set()  # who has the plan to fetch the final adapter, on its present connection
        self._failed_attempts = 0  # of the current round, since this start
        self._planner = Planner(fitted, ledger)
        self._plans = Plans(fitted, services.blob_url)
        self._roster = Roster(fleet, fitted, ledger, observe)
        self._reports = Reports(fitted, chain, services.uploads, self._planner.learn)
        for kind in ("birth", "state", "profile", "report"):
            services.transport.subscribe(topic_for(fleet, "+", kind))

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that have sent a message, by name."""
        return self._roster.devices

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self, *, resumed: bool, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Run the job to its end.

        Args:
            resumed: whether to resume the round that is open in the ledger.
            should_stop: asked between messages; a job that was stopped can be resumed later.

        Returns:
            Whether the job is finished (False: it was stopped).

        Raises:
            JobError: a round failed ``max_attempts`` times.
            StorageError: the ledger or a blob cannot be written; the job can be resumed.
        """
        self._should_stop = should_stop
        try:
            if resumed:
                self._resume()
            entered = queries.find_job(self._ledger, self._job.name)
            if entered is not None and entered.loss_start is None:
                self._services.evaluator.start(None, self._chain.theta)
            while not should_stop():
                if self._open is None and len(self._chain.closed) >= self._job.rounds:
                    self._collect_evaluation(wait=True)
                    return self._sync_all(should_stop)
                if self._open is None:
                    self._try_to_open()
                self._handle_next()
                self._collect_evaluation(wait=False)
                if self._open is not None:
                    self._decide(self._open)
            return False
        finally:
            self._services.evaluator.close()

    def _resume(self) -> None:
        opened = self._open = resume_attempt(self._job, self._ledger, self._observe, self._clock())
        if opened is not None:
            self._planner.learn(RoundResumed(opened.state.index, opened.state.attempt))
            for name in opened.waiting():
                self._send_plan(opened, name)

    def _handle_next(self) -> None:
        event = self._services.transport.receive(_TICK_S)
        if isinstance(event, Connected):
            self._say_hello()
            return
        if event is None or not event.payload:
            return  # an empty message: a device asks its broker whether it may publish (network/access.py)
        try:
            patiently(lambda: self._handle(event), self._should_stop)
        except ProtocolError as error:
            _LOG.warning("ignored a message on %s: %s", event.topic, error)
        except CoveyError:
            raise
        except Exception:  # noqa: BLE001 one message never ends the server
            _LOG.exception("ignored a message on %s by a fault of Covey; please report it", event.topic)

    def _say_hello(self) -> None:
        """Begin an epoch: the broker may have lost messages, or may retain those of devices that are gone."""
        epoch = self._services.new_epoch()
        self._roster.begin_epoch(epoch, self._clock())
        hello = encode_message(Hello(epoch=epoch, covey_version=__version__))
        self._services.transport.publish(hello_topic(self._fleet), hello, retain=True)

    def _handle(self, message: Message) -> None:
        name = device_of(message.topic)
        kind = message.topic.rsplit("/", 1)[-1]
        device = self._roster.device(name)
        if kind == "birth":
            self._take_birth(device, decode_message(message.payload, Birth))
        elif kind == "state":
            self._take_state(device, decode_message(message.payload, DeviceState))
        elif kind == "profile":
            self._roster.take_profile(device, message.payload)
        else:
            report = decode_device_report(message.payload)
            if report.device != name:
                raise ProtocolError(
                    f"{name} sent a report in the name of {report.device}",
                    "check name in the edge.toml of both: every device needs a name of its own",
                )
            self._roster.heard(device, self._clock())
            if report.job == self._job.name:
                self._take_report(device, report, len(message.payload))

    # -- devices ------------------------------------------------------------------------------------------------

    def _take_birth(self, device: Device, birth: Birth) -> None:
        is_new, opened = self._roster.take_birth(device, birth), self._open
        if birth.epoch == self._roster.epoch:
            self._roster.heard(device, self._clock())
            self._roster.watch_name(birth, self._clock())
        if is_new:
            self._final_sent.discard(device.name)
        if is_new and opened is not None and opened.holds(device.name):
            # The device may have lost the plan with its memory, or the broker with its store.
            opened.offer_again(device.name, self._clock())
            if device.name in opened.waiting():
                self._send_plan(opened, device.name)

    def _take_state(self, device: Device, state: DeviceState) -> None:
        self._roster.take_state(device, state)
        if state.epoch == self._roster.epoch:
            self._roster.heard(device, self._clock())
        if state.state in ("lost", "offline") and self._open is not None:
            self._open.lose(device.name, state.state)

    def _take_report(self, device: Device, report: DeviceReport, size_bytes: int) -> None:
        if isinstance(report, Synced):
            self._roster.prove(device, report.adapter_sha256)
        elif isinstance(report, (PlanAccepted, PlanRefused)):
            if self._open is not None and self._open.is_current(report.round, report.attempt):
                self._take_answer(device, self._open, report, size_bytes)
        else:
            ack = self._reports.take(device, self._open, report, size_bytes, self._clock())
            if ack.outcome == "taken":
                device.rest = None
                self._roster.prove(device, report.adapter_sha256)
            topic = topic_for(self._fleet, device.name, "report/ack")
            self._services.transport.publish(topic, encode_message(ack))

    def _take_answer(
        self, device: Device, opened: OpenRound, answer: PlanAccepted | PlanRefused, size_bytes: int
    ) -> None:
        if isinstance(answer, PlanAccepted):
            if device.is_here:  # a late answer; the message of a device that has died since changes nothing
                opened.offer_again(device.name, self._clock())
            opened.accept(device.name, size_bytes)
        else:
            if not self._reports.note_refusal(device, opened, answer):
                device.rest = next_rest(device.rest, answer.message, self._clock())
            opened.refuse(device.name, answer.message)

    # -- rounds -------------------------------------------------------------------------------------------------

    def _try_to_open(self) -> None:
        devices = self._roster.devices
        index, eligible = len(self._chain.closed), self._planner.eligible(devices, self._clock())
        needed = self._job.devices_to_start if index == 0 else self._job.min_reports
        if len(eligible) < needed:
            waiting = events.Waiting(
                online=len(eligible),
                needed=needed,
                ineligible=ineligible(devices),
                resting=resting(devices, self._clock()),
            )
            if self._waiting_for != waiting:
                self._waiting_for = waiting
                self._observe(waiting)
            return
        self._waiting_for = None
        attempt = queries.count_attempts(self._ledger, self._job.name, index)
        if self._failed_attempts >= self._job.max_attempts:
            self._ledger.end_job(self._job.name, "failed", None)
            raise JobError(
                f"round {index} had fewer than {self._job.min_reports} reports in {self._failed_attempts} attempts",
                failure_hint(queries.offers_of(self._ledger, self._job.name), index),
            )
        history = [closed.figures for closed in self._chain.closed]
        now = self._clock()
        drawn = self._planner.draw_up(devices, eligible, index, attempt, history, now)
        opened = self._open = begin_attempt(self._job, self._ledger, self._observe, drawn, self._chain.base, now)
        for name in drawn.devices:
            self._send_plan(opened, name)

    def _send_plan(self, opened: OpenRound, name: str) -> None:
        plan = self._plans.training(opened, name, self._reference(name), self._chain.mean_square, self._clock())
        payload = encode_message(plan)
        opened.count_bytes(name, down=len(payload))
        self._planner.learn(PlanSent(name, self._clock()))
        self._services.transport.publish(topic_for(self._fleet, name, "plan"), payload)

    def _reference(self, name: str) -> AdapterRef:
        device = self._roster.devices.get(name) or Device(name)
        return self._chain.reference(device.adapter_sha256, device.link_bytes_per_s, device.replay_parameters_per_s)

    def _give_up_the_silent(self, opened: OpenRound) -> None:
        """Stop waiting for devices that have not accepted their plan, or have not answered the last hello, in time."""
        now, accept_s = self._clock(), self._job.accept_s
        for name, offered_at in opened.unaccepted(now).items():
            device = self._roster.device(name)
            reason = f"it did not accept the plan within {accept_s:g} s"
            if device.heard_at is None or device.heard_at < offered_at:
                self._roster.keeps_silent(device, reason, now)
            opened.lose(name, reason)
        if now - self._roster.epoch_began_at > accept_s:
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
            deltas = opened.deltas()
            opened.abandon()
            everybody_refused = opened.state.count(OfferState.REFUSED) == len(opened.state.offers)
            for delta in deltas.values():
                self._services.uploads.blobs.remove(delta.sha256)
            self._services.uploads.forget_all()
            self._open = None
            # Where everybody has refused, all of them rest: the job waits for them, and no attempt is used up.
            self._failed_attempts += 0 if everybody_refused else 1

    def _aggregate(self, opened: OpenRound) -> None:
        uploads, chain = self._services.uploads, self._chain
        reports = len(opened.state.reported)
        self._planner.learn(RoundClosing(opened.state.index, opened.examples(), self._clock()))
        closed = patiently(
            lambda: close_round(self._fitted, self._ledger, chain, uploads.blobs, opened), self._should_stop
        )
        uploads.forget_all()
        self._observe(events.RoundClosed(round=closed.index, reports=reports, adapter_sha256=closed.result_sha256))
        if (closed.index + 1) % self._job.eval_every == 0 or closed.index + 1 == self._job.rounds:
            self._collect_evaluation(wait=True)
            self._services.evaluator.start(closed.index, chain.theta)

    def _collect_evaluation(self, *, wait: bool) -> None:
        collected = self._services.evaluator.collect(wait=wait)
        if collected is None:
            return
        index, result = collected
        if index is None:
            self._ledger.start_evaluated(self._job.name, result.loss, result.accuracy)
        else:
            self._ledger.round_evaluated(self._job.name, index, result.loss, result.accuracy)
        self._planner.learn(LossMeasured(index, result.loss))
        self._observe(events.Evaluated(round=index, loss=result.loss, accuracy=result.accuracy))

    # -- the end ------------------------------------------------------------------------------------------------

    def _sync_all(self, should_stop: Callable[[], bool]) -> bool:
        """Send the final adapter to every device that is online; each proves by its hash that it has it."""
        deadline_at = self._clock() + _FINAL_SYNC_S
        gone_until = self._clock() + _GONE_S
        sent: set[str] = set()
        self._final_sent.clear()
        while not should_stop():
            here = set(self._roster.online())
            for name in here - self._final_sent:
                plan = self._plans.final_sync(len(self._chain.closed), self._reference(name))
                self._services.transport.publish(topic_for(self._fleet, name, "plan"), encode_message(plan))
            sent |= here
            self._final_sent |= here
            proved = {name for name in sent if self._roster.device(name).adapter_sha256 == self._chain.sha256}
            self._observe(events.Syncing(proved=len(proved), devices=len(sent)))
            now = self._clock()
            if (sent - proved) & here:
                gone_until = now + _GONE_S
            # A broker keeps order within a topic only: a goodbye may overtake the proof that was sent before it.
            if sent <= proved or now > min(deadline_at, gone_until):
                return True
            self._handle_next()
        return False
