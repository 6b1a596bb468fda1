"""Coordinates one job: reads the devices' messages, drives the rounds, writes the ledger before it acts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ProtocolError
from edge_runtime.network.transport import Connected
from edge_runtime.protocol.messages import (
    AdapterRef,
    Birth,
    DeviceReport,
    DeviceState,
    PlanAccepted,
    PlanRefused,
    Synced,
    decode_message,
    encode_message,
)
from edge_runtime.protocol.topics import device_of, topic_for
from server import events
from server.errors import JobError
from server.evaluation import BackgroundEvaluator
from server.fleet.devices import Device, ineligible
from server.planning.planner import Planner
from server.profiles.received import ProfileStore
from server.rounds import state_machine
from server.rounds.closing import close_round
from server.rounds.open_round import Offers, open_offers, resume_offers
from server.rounds.plans import final_sync, plan_for
from server.rounds.reports import Reports
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.transport import Message, Transport
    from server.evaluation import InlineEvaluator
    from server.events import Observer
    from server.rounds.setting import Setting
    from server.storage.adapters import AdapterChain
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_TICK_S = 0.5
_FINAL_SYNC_S = 60.0
_GONE_S = 3.0


class Coordinator:
    """One job's coordinator.

    Args:
        setting: what the job runs in.
        ledger: the job is entered in it.
        chain: the job's adapters so far.
        transport: the server's connection.
        observe: told what happens.
        evaluator: None: one with a thread of its own.
    """

    def __init__(
        self,
        setting: Setting,
        ledger: Ledger,
        chain: AdapterChain,
        transport: Transport,
        observe: Observer,
        evaluator: BackgroundEvaluator | InlineEvaluator | None = None,
    ) -> None:
        self._setting = setting
        self._job = setting.fitted.job
        self._ledger = ledger
        self._chain = chain
        self._transport = transport
        self._observe = observe
        self._devices: dict[str, Device] = {}
        self._offers: Offers | None = None
        self._waiting_for: events.Waiting | None = None
        self._failed_attempts = 0  # of the round at hand, since this start
        self._planner = Planner(setting.fitted, ledger)
        self._chooser = self._planner.chooser
        self._profiles = ProfileStore(setting.fleet, setting.fitted, ledger)
        self._reports = Reports(setting, chain, self._chooser)
        self._evaluator = evaluator or BackgroundEvaluator(setting.evaluate)
        for kind in ("birth", "state", "profile", "report"):
            transport.subscribe(topic_for(setting.fleet, "+", kind))

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self, *, resumed: bool, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Run the job to its end.

        Args:
            resumed: take up the open round of the ledger.
            should_stop: asked between messages; the job can be resumed later.

        Returns:
            Whether the job is finished (False: it was stopped).

        Raises:
            JobError: a round failed ``max_attempts`` times.
            StorageError: the ledger or a blob cannot be written; the job can be resumed.
        """
        try:
            if resumed:
                self._offers = resume_offers(self._job, self._ledger, self._observe, self._setting.clock())
                if self._offers is not None:
                    self._chooser.resume(self._offers.state.index, self._offers.state.attempt)
                for name in self._offers.waiting() if self._offers is not None else ():
                    self._send_plan(name)
            entered = queries.find_job(self._ledger, self._job.name)
            if entered is not None and entered.loss_start is None:
                self._evaluator.start(None, self._chain.theta)
            while not should_stop():
                if self._offers is None and len(self._chain.closed) >= self._job.rounds:
                    self._collect_evaluation(wait=True)
                    return self._sync_all(should_stop)
                if self._offers is None:
                    self._try_to_open()
                self._handle_next()
                self._collect_evaluation(wait=False)
                self._decide()
            return False
        finally:
            self._evaluator.close()

    def _handle_next(self) -> None:
        event = self._transport.receive(_TICK_S)
        if event is None or isinstance(event, Connected):
            return
        try:
            self._handle(event)
        except ProtocolError as error:
            _LOG.warning("ignored a message on %s: %s", event.topic, error)

    def _handle(self, message: Message) -> None:
        name = device_of(message.topic)
        kind = message.topic.rsplit("/", 1)[-1]
        device = self._devices.get(name)
        if device is None:
            device = self._devices[name] = Device(name, profile=self._profiles.newest(name))
        if kind == "birth":
            self._take_birth(device, decode_message(message.payload, Birth))
        elif kind == "state":
            self._take_state(device, decode_message(message.payload, DeviceState))
        elif kind == "profile":
            device.profile = self._profiles.take(name, message.payload)
        else:
            report: DeviceReport = decode_message(
                message.payload,
                DeviceReport,  # type: ignore[arg-type]
            )
            if report.device != name:
                raise ProtocolError(f"{name} sent a report in the name of {report.device}", "look at this device")
            if report.job == self._job.name:
                self._take_report(device, report, len(message.payload))

    # -- devices ------------------------------------------------------------------------------------------------

    def _take_birth(self, device: Device, birth: Birth) -> None:
        if birth.device != device.name:
            raise ProtocolError(f"{device.name} announced itself as {birth.device}", "look at this device")
        is_new_start = device.birth is None or device.birth.boot_id != birth.boot_id
        device.birth, device.adapter_sha256 = birth, birth.adapter_sha256
        self._ledger.device_born(self._setting.fleet, device.name, msgspec.json.encode(birth).decode())
        if is_new_start and self._offers is not None and self._offers.holds(device.name):
            # It may have lost the plan with its memory.
            self._offers.offer_again(device.name)
            if device.name in self._offers.waiting():
                self._send_plan(device.name)

    def _take_state(self, device: Device, state: DeviceState) -> None:
        if (device.state, device.ineligible) != (state.state, state.ineligible):
            device.state, device.ineligible = state.state, state.ineligible
            self._ledger.device_state(self._setting.fleet, device.name, state.state, state.ineligible)
            self._observe(events.DeviceChanged(device=device.name, state=state.state, ineligible=state.ineligible))
        if state.state in ("lost", "offline") and self._offers is not None:
            self._offers.lose(device.name, state.state)

    def _online(self) -> list[str]:
        return sorted(device.name for device in self._devices.values() if device.is_here)

    def _prove(self, device: Device, sha256: str) -> None:
        device.adapter_sha256 = sha256
        self._ledger.device_proved(self._setting.fleet, device.name, sha256)

    # -- rounds -------------------------------------------------------------------------------------------------

    def _try_to_open(self) -> None:
        index, online = len(self._chain.closed), self._planner.eligible(self._devices)
        needed = self._job.devices_to_start if index == 0 else self._job.min_reports
        if len(online) < needed:
            waiting = events.Waiting(online=len(online), needed=needed, ineligible=ineligible(self._devices))
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
                "look at the devices' logs; raise deadline_s or lower min_reports in the job, and start it again",
            )
        base = (self._chain.sha256, self._chain.mean_square)
        history = [closed.figures for closed in self._chain.closed]
        now = self._setting.clock()
        cohort, plan = self._planner.draw_up(self._devices, online, index, attempt, history, now)
        self._offers = open_offers(self._job, self._ledger, self._observe, index, attempt, plan, base, cohort, now)
        for name in cohort:
            self._send_plan(name)

    def _send_plan(self, name: str) -> None:
        assert self._offers is not None  # noqa: S101
        plan = plan_for(self._setting, self._offers, name, self._reference(name), self._chain.mean_square)
        payload = encode_message(plan)
        self._offers.count_bytes(name, down=len(payload))
        self._chooser.sent(name, self._setting.clock())
        self._transport.publish(topic_for(self._setting.fleet, name, "plan"), payload)

    def _reference(self, name: str) -> AdapterRef:
        device = self._devices.get(name) or Device(name)
        return self._chain.reference(device.adapter_sha256, device.link_bytes_per_s, device.replay_parameters_per_s)

    def _decide(self) -> None:
        if self._offers is None:
            return
        decision = state_machine.decide(self._offers.state, self._setting.clock())
        if decision == "aggregate":
            self._aggregate(self._offers)
            self._offers = None
            self._failed_attempts = 0
        elif decision == "abandon":
            deltas = self._offers.taken_deltas()
            self._offers.abandon()
            for delta in deltas.values():
                self._setting.uploads.blobs.remove(delta.sha256)
            self._setting.uploads.forget_all()
            self._offers = None
            self._failed_attempts += 1

    def _aggregate(self, offers: Offers) -> None:
        setting, chain = self._setting, self._chain
        reports = len(offers.state.reported)
        self._chooser.closed(offers.state.index, offers.examples(), setting.clock())
        closed = close_round(setting.fitted, self._ledger, chain, setting.uploads.blobs, offers)
        setting.uploads.forget_all()
        self._observe(events.RoundClosed(round=closed.index, reports=reports, adapter_sha256=closed.result_sha256))
        if (closed.index + 1) % self._job.eval_every == 0 or closed.index + 1 == self._job.rounds:
            self._collect_evaluation(wait=True)
            self._evaluator.start(closed.index, chain.theta)

    def _collect_evaluation(self, *, wait: bool) -> None:
        collected = self._evaluator.collect(wait=wait)
        if collected is None:
            return
        index, result = collected
        if index is None:
            self._ledger.start_evaluated(self._job.name, result.loss, result.accuracy)
        else:
            self._ledger.round_evaluated(self._job.name, index, result.loss, result.accuracy)
        self._chooser.evaluated(index, result.loss)
        self._observe(events.Evaluated(round=index, loss=result.loss, accuracy=result.accuracy))

    # -- reports ------------------------------------------------------------------------------------------------

    def _take_report(self, device: Device, report: DeviceReport, size_bytes: int) -> None:
        if isinstance(report, Synced):
            self._prove(device, report.adapter_sha256)
        elif isinstance(report, PlanAccepted):
            if self._offers is not None and self._offers.is_current(report.round, report.attempt):
                self._offers.accept(device.name, size_bytes)
        elif isinstance(report, PlanRefused):
            if self._offers is not None and self._offers.is_current(report.round, report.attempt):
                self._reports.note_refusal(device, self._offers, report)
                self._offers.refuse(device.name, report.message)
        else:
            ack = self._reports.take(device, self._offers, report, size_bytes)
            if ack.outcome == "taken":
                self._prove(device, report.adapter_sha256)
            topic = topic_for(self._setting.fleet, device.name, "report/ack")
            self._transport.publish(topic, encode_message(ack))

    # -- the end ------------------------------------------------------------------------------------------------

    def _sync_all(self, should_stop: Callable[[], bool]) -> bool:
        """Bring the final adapter to every device that is here; each proves it by its hash."""
        deadline_at = self._setting.clock() + _FINAL_SYNC_S
        gone_until = self._setting.clock() + _GONE_S
        sent: set[str] = set()
        while not should_stop():
            here = set(self._online())
            for name in here - sent:
                self._send_sync(name)
            sent |= here
            proved = {name for name in sent if self._devices[name].adapter_sha256 == self._chain.sha256}
            self._observe(events.Syncing(proved=len(proved), devices=len(sent)))
            now = self._setting.clock()
            if (sent - proved) & here:
                gone_until = now + _GONE_S
            # A broker keeps order within a topic only: a goodbye may overtake the proof that was sent before it.
            if sent <= proved or now > min(deadline_at, gone_until):
                return True
            self._handle_next()
        return False

    def _send_sync(self, name: str) -> None:
        plan = final_sync(self._setting, len(self._chain.closed), self._reference(name))
        self._transport.publish(topic_for(self._setting.fleet, name, "plan"), encode_message(plan))
