"""The device's side of the protocol: announce, take plans, train, report, prove the adapter by its hash.

One plan at a time, in the order of arrival; a newer plan of the server ends the one at work. A report is in the journal
before it is sent, so the same plan coming again (after a lost connection or a restart) is answered without training.

A device that its owner's rules keep from work says so in its state, and declines a plan that comes nevertheless. What
it has begun it finishes: a round is short, and its work would be lost.
"""

from __future__ import annotations

import collections
import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.agent.announcer import Announcer
from edge_runtime.agent.backprop_plan import do_backprop
from edge_runtime.agent.forward_plan import do_forward
from edge_runtime.agent.inbox import _order, supersedes
from edge_runtime.agent.loaded_bundle import Workshop
from edge_runtime.device.gate import Gate, board_conditions
from edge_runtime.engines import choose
from edge_runtime.errors import ConfigError, CoveyError, NetworkError, ProtocolError
from edge_runtime.network.fetch import Fetcher, blob_base
from edge_runtime.network.transport import Connected, Message
from edge_runtime.network.upload import upload
from edge_runtime.protocol.messages import (
    BackpropPlan,
    DeltaReport,
    DeviceReport,
    Plan,
    PlanAccepted,
    PlanRefused,
    Report,
    ReportAck,
    Synced,
    SyncPlan,
    TrainPlan,
    decode_message,
    encode_message,
)
from edge_runtime.protocol.privacy import check_privacy
from edge_runtime.protocol.topics import Kind, topic_for
from edge_runtime.store.adapters import obtain_adapter
from edge_runtime.store.bundles import install_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import EngineMaker, TrainingEngineMaker
    from edge_runtime.network.transport import Transport
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)
_UPLOADS = 3  # of one delta, where the server has lost it


@dataclass(frozen=True)
class Finished:
    """The job that the device took part in is finished, and its final adapter is here."""

    job: str
    adapter_sha256: str


class Agent:
    """A device at work.

    Args:
        config: the device's configuration.
        store: its state directory.
        transport: its connection; the will must be announcer.lost_will's.
        boot_id: new with every start.
        clock: monotonic seconds.
        make_engine: see Workshop; None: the configuration's engine.
        make_training_engine: see Workshop.
        gate: whether the device takes work; None: by the configuration's rules and this machine's sensors.

    Raises:
        ConfigError: rules that this machine can never follow.
    """

    def __init__(
        self,
        config: EdgeConfig,
        store: Store,
        transport: Transport,
        boot_id: str,
        clock: Callable[[], float] = time.monotonic,
        make_engine: EngineMaker | None = None,
        make_training_engine: TrainingEngineMaker | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._config = config
        self._gate = gate or Gate(config.eligibility, board_conditions(store.root), clock=clock)
        self._store = store
        self._transport = transport
        self._announcer = Announcer(config, store, transport, boot_id, self._gate)
        self._clock = clock
        self._make_engine = make_engine or functools.partial(choose.make_engine, config.engine)
        self._make_training_engine = make_training_engine
        self._blob_url: str | None = None  # of the last plan
        self._uploaded: collections.Counter[str] = collections.Counter()
        self._workshop: Workshop | None = None
        self._link_bytes_per_s: float | None = None
        self._waiting: collections.deque[Message] = collections.deque()
        self._journal = store.journal()
        transport.subscribe(self._topic("plan"))
        transport.subscribe(self._topic("report/ack"))

    def _topic(self, kind: Kind) -> str:
        return topic_for(self._config.fleet, self._config.name, kind)

    # -- events -------------------------------------------------------------------------------------------------

    def run(self, *, until_finished: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Finished | None:
        """Serve plans until told to stop, or, with ``until_finished``, until a job's final adapter is here."""
        while not should_stop():
            message = self._waiting.popleft() if self._waiting else self._receive(1.0)
            if message is None:
                continue
            finished = self._handle(message)
            if finished is not None and until_finished:
                return finished
        return None

    def serve_waiting(self) -> Finished | None:
        """Handle one message that is here, without waiting; see run. For several devices in one thread."""
        message = self._waiting.popleft() if self._waiting else self._receive(0)
        return None if message is None else self._handle(message)

    def goodbye(self) -> tuple[str, bytes]:
        """Return the last message of a device that leaves in order: its state, ``offline``."""
        return self._announcer.goodbye()

    def _receive(self, timeout_s: float) -> Message | None:
        """Return the next message; announces itself where the connection is new, and whether it takes work."""
        if self._gate.look():
            self._announcer.state("online")
        event = self._transport.receive(timeout_s)
        if isinstance(event, Connected):
            self._announcer.all(self._journal, self._workshop)
            return None
        return event

    def _report(self, report: DeviceReport) -> None:
        self._transport.publish(self._topic("report"), encode_message(report))

    # -- plans --------------------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> Finished | None:
        try:
            if message.topic == self._topic("report/ack"):
                self._take_ack(decode_message(message.payload, ReportAck))
                return None
            plan: Plan = decode_message(message.payload, Plan)  # type: ignore[arg-type]
        except ProtocolError as error:
            _LOG.error("ignored a message on %s: %s", message.topic, error)
            return None
        if self._superseded(plan):
            _LOG.info("skipped the plan of round %d: a newer one is here", plan.round)
            return None
        self._announcer.state("busy")
        try:
            self._blob_url = blob_base(plan.blob_url, self._transport.broker_host, self._config.server_url)
            if isinstance(plan, SyncPlan):
                return self._sync(plan)
            self._take_part(plan)
        except CoveyError as error:
            _LOG.error("round %d of job %s failed: %s", plan.round, plan.job, error)
            self._refuse(plan.job, *_order(plan), error)
        finally:
            self._gate.look()
            self._announcer.state("online")
        return None

    def _take_ack(self, ack: ReportAck) -> None:
        level = logging.INFO if ack.outcome in ("taken", "upload") else logging.WARNING
        _LOG.log(level, "round %d: report %s %s", ack.round, ack.outcome, ack.reason)
        if ack.outcome != "upload":
            return
        report = self._last_report()
        asked = (ack.job, ack.round, ack.attempt)
        if isinstance(report, DeltaReport) and (report.job, report.round, report.attempt) == asked:
            self._send_delta(report)

    def _send_delta(self, report: DeltaReport) -> None:
        """Upload a delta that the server waits for, and send its report again."""
        sha256 = report.delta.sha256
        self._uploaded[sha256] += 1
        try:
            if self._blob_url is None or self._uploaded[sha256] > _UPLOADS:
                raise NetworkError("the server asks for the delta again and again", "look at the server's log")
            upload(self._blob_url, sha256, self._store.delta_file(sha256))
        except CoveyError as error:
            _LOG.error("round %d: the delta could not be sent: %s", report.round, error)
            if self._plan_waits():
                return  # of a server that was started anew, perhaps elsewhere: the report is its answer
            self._refuse(report.job, report.round, report.attempt, error)
        else:
            self._report(report)

    def _last_report(self) -> Report | None:
        """Return the journal's report; None where there is none, or one of an older version of the protocol."""
        if self._journal.report is None:
            return None
        try:
            report: Report = decode_message(self._journal.report, Report)  # type: ignore[arg-type]
        except ProtocolError as error:
            _LOG.warning("the journal's report is of no use: %s", error.what)
            return None
        return report

    def _superseded(self, plan: Plan) -> bool:
        """Whether a later plan is waiting."""
        return self._plan_waits() and any(
            supersedes(message.payload, plan) for message in self._waiting if message.topic == self._topic("plan")
        )

    def _plan_waits(self) -> bool:
        """Whether any plan is waiting. Events are taken from the transport, none is lost."""
        while (event := self._transport.receive(0)) is not None:
            if isinstance(event, Connected):
                self._announcer.all(self._journal, self._workshop)
            else:
                self._waiting.append(event)
        return any(message.topic == self._topic("plan") for message in self._waiting)

    def _refuse(self, job: str, index: int, attempt: int, error: CoveyError) -> None:
        refused = PlanRefused(
            job=job,
            round=index,
            attempt=attempt,
            device=self._config.name,
            code=error.exit_code,
            message=str(error)[:2000],
        )
        self._report(refused)

    def _prepare(self, plan: Plan) -> tuple[Workshop, FloatVector, int]:
        """Return the workshop of the plan's bundle, the plan's adapter, and the bytes the adapter took."""
        assert self._blob_url is not None  # noqa: S101 set when the plan came
        fetcher = Fetcher(self._blob_url)
        is_new = self._workshop is None or self._workshop.bundle.sha256 != plan.bundle_sha256
        if self._workshop is None or is_new:
            self._workshop = None
            bundle = install_bundle(self._store, fetcher, plan.bundle_sha256, self._config.threads, self._config.engine)
            makers = (self._make_engine, self._make_training_engine)
            self._workshop = Workshop(bundle, self._config.data, self._config.threads, *makers, self._config.engine)
        fetcher.fetched_bytes = 0
        theta = obtain_adapter(self._store, fetcher, self._workshop.bundle, plan.adapter)
        self._link_bytes_per_s = fetcher.bytes_per_s or self._link_bytes_per_s
        if (self._journal.job, self._journal.bundle_sha256) != (plan.job, plan.bundle_sha256):
            self._write_journal(personal_sha256=None, personal_round=None, personal_before_sha256=None)
        self._write_journal(job=plan.job, bundle_sha256=plan.bundle_sha256, adapter_sha256=plan.adapter.file.sha256)
        if is_new:
            self._announcer.capabilities(self._journal, self._workshop)  # now it knows its bundle and its rows
        return self._workshop, theta, fetcher.fetched_bytes

    def _write_journal(self, **changes: object) -> None:
        journal = msgspec.structs.replace(self._journal, **changes)
        if journal != self._journal:
            self._store.write_journal(journal)
            self._journal = journal

    def _sync(self, plan: SyncPlan) -> Finished | None:
        _, _, fetched_bytes = self._prepare(plan)
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
        if self._send_again(plan):
            return
        self._check_gate()
        privacy = plan.privacy if isinstance(plan, TrainPlan) else None
        check_privacy(privacy, self._config.least_noise_multiplier)
        self._report(PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self._config.name))
        workshop, theta, fetched_bytes = self._prepare(plan)
        started = self._clock()

        def goes_on(_step: int, _loss: float) -> bool:
            return not self._superseded(plan) and self._clock() - started <= plan.deadline_s

        report: Report | None
        journal: dict[str, object] = {}
        if isinstance(plan, TrainPlan):
            report = do_forward(plan, self._config.name, workshop, theta, goes_on, self._clock)
        else:
            again = self._journal.personal_round == plan.round
            before = self._journal.personal_before_sha256 if again else self._journal.personal_sha256
            done = do_backprop(
                plan,
                self._config.name,
                self._config.backpropagates,
                workshop,
                theta,
                self._store,
                before,
                goes_on,
                self._clock,
            )
            report, after = done if done is not None else (None, None)
            journal = {"personal_sha256": after, "personal_round": plan.round, "personal_before_sha256": before}
        if report is None:
            _LOG.info("gave up round %d: its deadline has passed, or a newer plan is here", plan.round)
            return
        report = msgspec.structs.replace(
            report,
            link_bytes_per_s=self._link_bytes_per_s,
            replay_parameters_per_s=workshop.replay_parameters_per_s(self._clock),
            blob_bytes=fetched_bytes,
        )
        self._write_journal(report=encode_message(report), **journal)
        self._store.keep_only(
            (self._journal.personal_sha256, self._journal.personal_before_sha256),
            report.delta.sha256 if isinstance(report, DeltaReport) else None,
        )
        self._report(report)
        _LOG.info("round %d: loss %s in %.1f s", plan.round, report.loss, report.seconds)

    def _check_gate(self) -> None:
        """Decline where the owner's rules say so; the server is told first, that it does not ask again at once.

        Raises:
            ConfigError: the rules that are broken.
        """
        self._gate.look(now=True)
        if self._gate.closed is not None:
            self._announcer.state("online")
            raise ConfigError(self._gate.closed, "see [eligibility] in edge.toml")

    def _send_again(self, plan: TrainPlan | BackpropPlan) -> bool:
        """Send the journal's report where it answers this very plan."""
        report = self._last_report()
        if report is None:
            return False
        same = (report.job, report.round, report.attempt, report.adapter_sha256) == (
            plan.job,
            plan.round,
            plan.attempt,
            plan.adapter.file.sha256,
        )
        if same:
            self._report(report)
        return same
