"""The device's side of the protocol: announce, take plans, train, report, prove the adapter by its hash.

The agent handles one plan at a time, in order of arrival; a newer plan ends the round at work. A report is in the
journal before it is sent, so that the agent answers the same plan again without training after a lost connection or a
restart.

A device that its owner's rules keep from training says so in its state, and refuses a plan that arrives nevertheless. A
round that has begun is finished: rounds are short, and stopping would waste the work.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.agent.announcer import Announcer
from edge_runtime.agent.deaths import DeathWatch
from edge_runtime.agent.delta_uploads import DeltaUploads
from edge_runtime.agent.held_out import HeldOutWatch
from edge_runtime.agent.inbox import Inbox, round_and_attempt
from edge_runtime.agent.last_report import LastReport
from edge_runtime.agent.log_sender import LogSender, NoLog
from edge_runtime.agent.predict_requests import Answers, PredictRequests
from edge_runtime.agent.readiness import Readiness
from edge_runtime.agent.releases import Releases
from edge_runtime.agent.too_old import skip_plan
from edge_runtime.agent.trainer import Trainer
from edge_runtime.device.machine import this_machine
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import FaultError, NetworkError, ProtocolError, StorageError, as_covey_error, as_exception
from edge_runtime.network.fetch import blob_base
from edge_runtime.network.transport import Connected, GivenUp
from edge_runtime.protocol.messages import decode_device_report, decode_message, decode_plan_or_refusal, encode_message
from edge_runtime.protocol.plans import BackpropPlan, Plan, SyncPlan, TrainPlan
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.privacy import check_privacy
from edge_runtime.protocol.reports import (
    DeltaReport,
    DeviceReport,
    PlanAccepted,
    PlanRefused,
    ReportAck,
    RoundReport,
    Synced,
)
from edge_runtime.protocol.side_messages import LogRequest, Release, TooOld
from edge_runtime.protocol.topics import LISTENS, Kind, hello_topic, topic_for
from edge_runtime.store.journal_file import JournalFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.kept_log import Log
    from edge_runtime.agent.trainer import Prepared
    from edge_runtime.device.machine import Machine
    from edge_runtime.engines.engine import MakesEngines
    from edge_runtime.network.transport import Event, Message, Transport
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)
_AGAIN_S = 1.0
"""Seconds that the agent waits after an error between plans."""


@dataclass(frozen=True)
class Finished:
    """The job that the device took part in is finished, and its final adapter is on the device."""

    job: str
    adapter_sha256: str


class Agent:
    """A device that serves plans.

    Args:
        config: the device's configuration.
        store: its state directory.
        transport: its connection; its last will must be the one of announcer.lost_will.
        boot_id: new with every start of the process.
        engines: makes the engines; None: those of the configured runtime.
        machine: the machine it runs on; None: this one, with the configured rules.
        log: its public log, sent to whoever asks (log_sender.py); None: it has none.
        contained: whether what is new here is tried in a child process. Off for many devices in one process.

    Raises:
        ConfigError: this machine can never follow the rules.
        StorageError: the journal cannot be read. A damaged one is set aside.
    """

    def __init__(
        self,
        config: EdgeConfig,
        store: Store,
        transport: Transport,
        boot_id: str,
        engines: MakesEngines | None = None,
        machine: Machine | None = None,
        log: Log | None = None,
        *,
        contained: bool = False,
    ) -> None:
        self._config, self._store, self._transport = config, store, transport
        self._machine = machine or this_machine(config.eligibility, store.root)
        urgent = (hello_topic(config.fleet), self._topic("log/get"), self._topic("predict"))
        self._inbox = Inbox(transport, self._topic("plan"), urgent, self._handle_at_once)
        self._journal = JournalFile(store)
        self._deaths = DeathWatch(self._journal, self._machine.clock)
        self._deaths.enter(self._machine.boot_id)
        engines = engines or Engines(config.engine, config.threads, config.execution_providers)
        pause, clock = self._inbox.pause_transfer, self._machine.clock
        self._trainer = Trainer(config, store, self._journal, engines, self._machine, pause, contained=contained)
        self._readiness = Readiness(self._machine.gate, self._trainer.rows_watch)
        self._announcer = Announcer(config, store, transport, boot_id, self._machine, self._readiness)
        self._last_report = LastReport(
            self._journal,
            self._report,
            lambda: transport.local_address is not None,
            self._machine.clock,
            "perhaps the server is down, or the broker's access list forbids the server to read "
            f"{self._topic('report')}, or this device to read {self._topic('report/ack')}",
        )
        self._deltas = DeltaUploads(store, config.tls, pause)
        self._releases = Releases(config, store, transport, pause, clock, contained=contained)
        self._held_out = HeldOutWatch(config, store, self._machine)
        self._blob_url: str | None = None  # of the last plan
        self._unannounced = False
        self._should_stop: Callable[[], bool] = lambda: False
        self._logs = LogSender(
            config.name, boot_id, log or NoLog(), partial(transport.publish, self._topic("log")), clock
        )
        self._takes = {self._topic("log/get"): lambda payload: self._logs.take(decode_message(payload, LogRequest))}
        _LOG.info("device %s of fleet %s begins: Covey %s, %s", config.name, config.fleet, __version__, config.engine)
        transport.subscribe(hello_topic(config.fleet))
        for kind in LISTENS:
            transport.subscribe(self._topic(kind))

    def answer_with(self, service: Answers) -> None:
        """Answer the server's requests for predictions from now on; see predict_requests.py."""
        publish = partial(self._transport.publish, self._topic("predicted"))
        self._takes[self._topic("predict")] = PredictRequests(
            self._config.name, service, publish, self._machine.clock
        ).take
        self._transport.subscribe(self._topic("predict"))

    def _topic(self, kind: Kind) -> str:
        return topic_for(self._config.fleet, self._config.name, kind)

    def run(self, *, until_finished: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Finished | None:
        """Serve plans until told to stop or, with ``until_finished``, until a job's final adapter is on the device."""
        self._should_stop = should_stop
        while not should_stop():
            try:
                finished = self._serve_next(timeout_s=1.0)
            except BaseException as raised:  # noqa: BLE001 nothing that happens between plans ends a device
                caught = as_exception(raised)
                error = as_covey_error(caught)
                trace = caught if isinstance(error, FaultError) else None
                _LOG.error("%s; trying again in %g s", error, _AGAIN_S, exc_info=trace)
                time.sleep(_AGAIN_S)
                continue
            if finished is not None and until_finished:
                return finished
        return None

    def serve_waiting(self) -> Finished | None:
        """Handle one message that has arrived, without waiting; see run. For several devices in one thread."""
        return self._serve_next(timeout_s=0)

    def goodbye(self) -> tuple[str, bytes]:
        """Return topic and payload of the last message of a device that shuts down properly."""
        return self._announcer.goodbye()

    def _serve_next(self, timeout_s: float) -> Finished | None:
        if self._unannounced:
            self._announce()
        self._logs.turn()
        message = self._inbox.take()
        if message is None:
            if self._readiness.look():
                self._announcer.state("online")
            message = self._inbox.receive(timeout_s)
        if message is None:
            self._last_report.turn()
            self._releases.turn()
            if self._held_out.turn(self._inbox.has_plan):
                self._announcer.capabilities(self._journal.entries, self._trainer.loaded)
            return None
        return self._handle(message)

    def _handle_at_once(self, event: Event) -> None:
        """Take in a new connection or the server's hello, and announce the device; take requests that do not wait."""
        if isinstance(event, GivenUp):
            self._give_up(event)
            return
        if isinstance(event, Connected):
            self._announcer.session.connections += 1
            self._trainer.rows_watch.forget()  # the server may be another one, with other labels
        elif not event.payload:
            return  # the server asks its broker whether it may publish (network/access.py)
        else:
            try:
                if (take := self._takes.get(event.topic)) is not None:
                    take(event.payload)
                    return
                hello = decode_message(event.payload, Hello)
            except ProtocolError as error:
                _LOG.error("ignored a message on %s: %s", event.topic, error)
                return
            if hello.epoch == self._announcer.session.epoch:
                return
            self._announcer.session.epoch = hello.epoch
        self._announce()

    def _announce(self) -> None:
        """Publish every message; what fails now (no file descriptor may be left) is tried again at the next turn."""
        try:
            self._readiness.look()
            self._announcer.all(self._journal.entries, self._trainer.loaded)
            self._last_report.again()
            self._releases.announced()
        except Exception as error:  # noqa: BLE001 a device that cannot announce itself now can do so later
            _LOG.error("cannot announce this device: %s", as_covey_error(error))
            self._unannounced = True
        else:
            self._unannounced = False
            self._logs.announced(self._announcer.session.epoch)

    def _give_up(self, event: GivenUp) -> None:
        """Refuse the plan whose report the broker does not take; the transport has said what else was given up."""
        if event.topic != self._topic("report"):
            return
        report = decode_device_report(event.payload)
        if isinstance(report, (RoundReport, DeltaReport)):
            error = NetworkError(event.finding, event.remedy)
            self._last_report.not_taken(event.payload, error)
            self._refuse(report.job, report.round, report.attempt, error)

    def _report(self, report: DeviceReport) -> None:
        self._transport.publish(self._topic("report"), encode_message(report))

    # -- messages -----------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> Finished | None:
        try:
            if message.topic == self._topic("report/ack"):
                self._take_ack(decode_message(message.payload, ReportAck))
                return None
            if message.topic == self._topic("release"):
                self._releases.take(decode_message(message.payload, Release))
                return None
            plan = decode_plan_or_refusal(message.payload)
        except ProtocolError as error:
            _LOG.error("ignored a message on %s: %s", message.topic, error)
            return None
        if isinstance(plan, TooOld) or self._is_outdated(plan):
            skip_plan(plan, self._store, self._config.engine)
            return None
        try:
            self._announcer.state("busy")
            self._blob_url = blob_base(plan.blob_url, self._transport.broker_host, self._config.server_url)
            if isinstance(plan, SyncPlan):
                return self._sync(plan)
            self._take_part(plan)
        except BaseException as caught:  # noqa: BLE001 any exception within a plan, panics too, is its refusal and not the device's end
            refused = as_exception(caught)
            if self._readiness.look():  # its rows are unusable: the server knows before it could ask again
                self._announcer.state("online")
            if isinstance(refused, NetworkError) and self._inbox.has_plan():
                _LOG.warning("round %d: %s; the plan that has arrived is tried now", plan.round, refused.what)
            else:
                self._refuse(plan.job, *round_and_attempt(plan), refused)
        finally:
            self._end_plan()
            self._readiness.look()
            self._announcer.state("online")
        return None

    def _is_outdated(self, plan: Plan) -> bool:
        try:
            self._inbox.collect()
        except Exception as error:  # noqa: BLE001 what is wrong with another message does not lose this plan
            _LOG.error("cannot take in what has arrived: %s", as_covey_error(error))
        return self._inbox.has_newer(plan)

    def _take_ack(self, ack: ReportAck) -> None:
        level = logging.INFO if ack.outcome in ("taken", "upload", "duplicate") else logging.WARNING
        _LOG.log(level, "round %d: report %s %s", ack.round, ack.outcome, ack.reason)
        report = self._last_report.take(ack)
        if isinstance(report, DeltaReport):
            self._send_delta(report)

    def _send_delta(self, report: DeltaReport) -> None:
        """Upload a delta that the server waits for, and send its report again."""
        if self._blob_url is None:
            _LOG.info("round %d: its delta is sent once a plan says where to", report.round)
            return  # since the start: whoever waits for this report sends its plan to a device that is new here
        if self._inbox.has_plan():
            return  # the server may have restarted elsewhere: the report answers the plan, or is pointless
        try:
            self._deltas.send(report.delta.sha256, self._blob_url, (report.job, report.round, report.attempt))
            self._last_report.send()
        except Exception as error:  # noqa: BLE001 as for a plan
            if self._inbox.has_plan():
                _LOG.warning("round %d: the delta could not be sent: %s", report.round, as_covey_error(error))
                return
            self._refuse(report.job, report.round, report.attempt, error)
            self._last_report.give_up()

    def _refuse(self, job: str, index: int, attempt: int, caught: Exception) -> None:
        """Say in the log and to the server why a round failed; the log may quote private rows, the message does not."""
        error = as_covey_error(caught)
        trace = caught if isinstance(error, FaultError) else None
        _LOG.error("round %d of job %s failed: %s", index, job, error, exc_info=trace)
        device, code, message = self._config.name, error.exit_code, error.public[:2000]
        self._report(PlanRefused(job=job, round=index, attempt=attempt, device=device, code=code, message=message))

    # -- plans --------------------------------------------------------------------------------------------------

    def _prepare(self, plan: Plan) -> Prepared:
        assert self._blob_url is not None  # noqa: S101 _handle has set it from this plan
        prepared = self._trainer.prepare(plan, self._blob_url)
        if prepared.has_news:  # only now are the device's rows and levels known
            self._announcer.capabilities(self._journal.entries, prepared.loaded)
        return prepared

    def _sync(self, plan: SyncPlan) -> Finished | None:
        fetched_bytes = self._prepare(plan).fetched_bytes
        have = plan.adapter.file.sha256  # obtain_adapter has hashed the bytes
        self._report(
            Synced(
                job=plan.job,
                round=plan.round,
                device=self._config.name,
                adapter_sha256=have,
                blob_bytes=fetched_bytes,
            )
        )
        _LOG.info("adapter %s of job %s is here", have[:12], plan.job)
        return Finished(plan.job, have) if plan.final else None

    def _take_part(self, plan: TrainPlan | BackpropPlan) -> None:
        """Train a round, enter its report in the journal, and send it."""
        if self._last_report.answers(plan):
            self._last_report.send()
            return
        self._check_ready(plan.bundle_sha256)
        privacy = plan.privacy if isinstance(plan, TrainPlan) else None
        check_privacy(privacy, self._config.least_noise_multiplier)
        self._deaths.check(plan)
        self._report(PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self._config.name))
        done = self._trainer.train(plan, self._prepare(plan), self._until_deadline(plan))
        if done is None:
            _LOG.info("abandoned round %d: its deadline has passed, or a newer plan is here", plan.round)
            return
        report, personal = done
        self._journal.end_round(encode_message(report), personal)
        journal = self._journal.entries
        self._store.keep_only(
            (journal.personal_sha256, journal.personal_before_sha256),
            report.delta.sha256 if isinstance(report, DeltaReport) else None,
        )
        self._last_report.send()
        _LOG.info("round %d: loss %s in %.1f s", plan.round, report.loss, report.seconds)

    def _until_deadline(self, plan: TrainPlan | BackpropPlan) -> Callable[[int, float], bool]:
        """Return a function that is True until the plan's deadline has passed or a newer plan has arrived."""
        started = self._machine.clock()

        def goes_on(_step: int, _loss: float) -> bool:
            if self._should_stop():
                self._end_plan()  # whoever has told this process to stop may kill it soon: that is no death
            self._inbox.collect()
            self._logs.turn()
            return not self._inbox.has_newer(plan) and self._machine.clock() - started <= plan.deadline_s

        return goes_on

    def _end_plan(self) -> None:
        try:
            self._journal.end_plan()
        except StorageError as error:
            _LOG.warning("the journal still says that a plan is being trained: %s", error)

    def _check_ready(self, bundle_sha256: str) -> None:
        """Re-evaluate rules and rows; where they forbid training, publish the state first, so the server knows why.

        Raises:
            ConfigError, DataError: see Readiness.check.
        """
        self._trainer.rows_watch.expect(bundle_sha256)
        self._readiness.look(now=True)
        if self._readiness.closed is not None:
            self._announcer.state("online")
        self._readiness.check()
