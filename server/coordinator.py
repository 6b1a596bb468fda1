"""Coordinates one job: reads the devices' messages, drives the rounds, writes the ledger before it acts.

One thread runs the loop; evaluations run beside it, so that the next round is on its way while the last is evaluated.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime import protocol
from edge_runtime.errors import ProtocolError
from edge_runtime.replay import unpack_scalars
from edge_runtime.transport import Connected
from edge_runtime.workshop import encode_log
from server import events, rounds
from server.aggregate import TakenReport, aggregate
from server.errors import JobError
from server.fleet import Device, choose_cohort
from server.ledger import ClosedRound, Ledger
from server.rounds import OfferState

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.manifest import Manifest
    from edge_runtime.perturbation import FloatVector
    from edge_runtime.transport import Message, Transport
    from server.adapters import AdapterChain
    from server.blobs import BlobStore
    from server.evaluate import Evaluation
    from server.events import Observer
    from server.job import Job

_LOG = logging.getLogger(__name__)
_TICK_S = 0.5
_FINAL_SYNC_S = 60.0
_GONE_S = 3.0


@dataclass(frozen=True)
class Setting:
    """What a job runs in; nothing of it changes.

    Attributes:
        fleet: name of the fleet.
        job: the job, its split filled in.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
        blob_url: where devices fetch blobs.
        evaluate: evaluates an adapter on the held-out rows; called from another thread.
        clock: monotonic seconds.
    """

    fleet: str
    job: Job
    manifest: Manifest
    bundle_sha256: str
    blob_url: str
    evaluate: Callable[[FloatVector], Evaluation]
    clock: Callable[[], float]


class Coordinator:
    """One job's coordinator. See the module's docstring."""

    def __init__(
        self,
        setting: Setting,
        ledger: Ledger,
        blobs: BlobStore,
        chain: AdapterChain,
        transport: Transport,
        observe: Observer,
    ) -> None:
        self._setting = setting
        self._ledger = ledger
        self._blobs = blobs
        self._chain = chain
        self._transport = transport
        self._observe = observe
        self._devices: dict[str, Device] = {}
        self._round: rounds.Round | None = None
        self._waiting_for: tuple[int, int] | None = None
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluate")
        self._evaluation: tuple[int | None, concurrent.futures.Future[Evaluation]] | None = None
        for kind in ("birth", "state", "report"):
            transport.subscribe(protocol.topic(setting.fleet, "+", kind))

    @property
    def _job(self) -> Job:
        return self._setting.job

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
                self._take_up()
            if not self._ledger.rows("SELECT loss_start FROM jobs WHERE name = ?", self._job.name)[0]["loss_start"]:
                self._start_evaluation(None)
            while not should_stop():
                if self._round is None and len(self._chain.closed) >= self._job.rounds:
                    self._collect_evaluation(wait=True)
                    return self._sync_all(should_stop)
                if self._round is None:
                    self._try_to_open()
                self._handle_next(_TICK_S)
                self._collect_evaluation(wait=False)
                self._decide()
            return False
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _handle_next(self, timeout_s: float) -> None:
        event = self._transport.receive(timeout_s)
        if event is None or isinstance(event, Connected):
            return
        try:
            self._handle(event)
        except ProtocolError as error:
            _LOG.warning("ignored a message on %s: %s", event.topic, error)

    def _handle(self, message: Message) -> None:
        name = protocol.device_of(message.topic)
        kind = message.topic.rsplit("/", 1)[-1]
        device = self._devices.setdefault(name, Device(name))
        if kind == "birth":
            self._take_birth(device, protocol.decode(message.payload, protocol.Birth))
        elif kind == "state":
            self._take_state(device, protocol.decode(message.payload, protocol.DeviceState))
        else:
            report: protocol.DeviceReport = protocol.decode(
                message.payload,
                protocol.DeviceReport,  # type: ignore[arg-type]
            )
            if report.device != name:
                raise ProtocolError(f"{name} sent a report in the name of {report.device}", "look at this device")
            if report.job == self._job.name:
                self._take_report(device, report, len(message.payload))

    # -- devices ------------------------------------------------------------------------------------------------

    def _take_birth(self, device: Device, birth: protocol.Birth) -> None:
        if birth.device != device.name:
            raise ProtocolError(f"{device.name} announced itself as {birth.device}", "look at this device")
        is_new_start = device.birth is None or device.birth.boot_id != birth.boot_id
        device.birth, device.adapter_sha256 = birth, birth.adapter_sha256
        self._ledger.device_born(self._setting.fleet, device.name, msgspec.json.encode(birth).decode())
        if is_new_start and self._round is not None and device.name in self._round.offers:
            self._offer_again(device.name)

    def _offer_again(self, name: str) -> None:
        """A device of the open round has started anew, perhaps without the plan: send it once more."""
        assert self._round is not None  # noqa: S101
        self._round = rounds.offer_again(self._round, name)
        if self._round.offers[name] in (OfferState.OFFERED, OfferState.ACCEPTED):
            self._send_plan(name)

    def _take_state(self, device: Device, state: protocol.DeviceState) -> None:
        if device.state != state.state:
            device.state = state.state
            self._ledger.device_state(self._setting.fleet, device.name, state.state)
            self._observe(events.DeviceChanged(device=device.name, state=state.state))
        if state.state in ("lost", "offline") and self._round is not None:
            self._fail_offer(device.name, rounds.lose(self._round, device.name), OfferState.LOST, state.state)

    def _online(self) -> list[str]:
        return sorted(device.name for device in self._devices.values() if device.is_here)

    # -- rounds -------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Go on with the round that was open when the server stopped; its reports are in the ledger."""
        job = self._job.name
        for row in self._ledger.rows("SELECT * FROM rounds WHERE job = ? AND state = 'open'", job):
            offers = self._ledger.rows(
                "SELECT device, state FROM offers WHERE job = ? AND round = ? AND attempt = ?",
                job, row["round"], row["attempt"],
            )  # fmt: skip
            self._round = rounds.Round(
                index=row["round"],
                attempt=row["attempt"],
                deadline_at=self._setting.clock() + self._job.deadline_s,
                min_reports=self._job.min_reports,
                enough_reports=self._enough(len(offers)),
                offers={offer["device"]: OfferState(offer["state"]) for offer in offers},
            )
            _LOG.info("resumed in round %d with %d reports", row["round"], len(self._round.reported))
            for name, state in self._round.offers.items():
                if state in (OfferState.OFFERED, OfferState.ACCEPTED):
                    self._send_plan(name)

    def _enough(self, offered: int) -> int:
        return min(self._job.cohort, offered) if self._job.cohort else offered

    def _next_attempt(self) -> int:
        index = len(self._chain.closed)
        return len(self._ledger.rows("SELECT 1 FROM rounds WHERE job = ? AND round = ?", self._job.name, index))

    def _try_to_open(self) -> None:
        index, online = len(self._chain.closed), self._online()
        needed = self._job.devices_to_start if index == 0 else self._job.min_reports
        if len(online) < needed:
            if self._waiting_for != (len(online), needed):
                self._waiting_for = (len(online), needed)
                self._observe(events.Waiting(online=len(online), needed=needed))
            return
        self._waiting_for = None
        attempt = self._next_attempt()
        if attempt >= self._job.max_attempts:
            self._ledger.end_job(self._job.name, "failed", None)
            raise JobError(
                f"round {index} had fewer than {self._job.min_reports} reports in {attempt} attempts",
                "look at the devices' logs; raise deadline_s or lower min_reports in the job",
            )
        cohort = choose_cohort(online, self._job.cohort, self._job.over_selection, self._job.seed, index, attempt)
        self._ledger.open_round(self._job.name, index, attempt, self._chain.sha256, self._chain.mean_square, cohort)
        self._round = rounds.open_round(
            index,
            attempt,
            cohort,
            self._setting.clock() + self._job.deadline_s,
            self._job.min_reports,
            self._enough(len(cohort)),
        )
        self._observe(events.RoundOpened(round=index, attempt=attempt, devices=cohort))
        for name in cohort:
            self._send_plan(name)

    def _send_plan(self, name: str) -> None:
        assert self._round is not None  # noqa: S101
        assert self._job.split is not None  # noqa: S101 fit_to_bundle has run
        plan = protocol.TrainPlan(
            job=self._job.name,
            job_seed=self._job.seed,
            round=self._round.index,
            attempt=self._round.attempt,
            bundle_sha256=self._setting.bundle_sha256,
            adapter=self._reference(name),
            rule=self._job.step,
            split=self._job.split,
            steps=self._job.steps,
            batch_size=self._job.batch_size,
            mean_square=self._chain.mean_square,
            deadline_s=max(1.0, self._round.deadline_at - self._setting.clock()),
            blob_url=self._setting.blob_url,
        )
        payload = protocol.encode(plan)
        self._count(name, down=len(payload))
        self._transport.publish(protocol.topic(self._setting.fleet, name, "plan"), payload)

    def _reference(self, name: str) -> protocol.AdapterRef:
        device = self._devices.get(name)
        return self._chain.reference(device.adapter_sha256 if device is not None else None)

    def _count(self, name: str, *, up: int = 0, down: int = 0) -> None:
        if self._round is not None:
            self._ledger.add_bytes(self._job.name, self._round.index, self._round.attempt, name, up=up, down=down)

    def _fail_offer(self, name: str, changed: rounds.Round, state: OfferState, reason: str) -> None:
        """Record that an offer will give no report, where that is news."""
        if changed is self._round:
            return
        self._round = changed
        self._ledger.offer_is(self._job.name, changed.index, changed.attempt, name, state.value, reason)
        self._observe(events.OfferFailed(round=changed.index, device=name, reason=reason))

    def _decide(self) -> None:
        if self._round is None:
            return
        decision = rounds.decide(self._round, self._setting.clock())
        if decision == "aggregate":
            self._aggregate(self._round)
        elif decision == "abandon":
            current, self._round = self._round, None
            self._ledger.abandon_round(self._job.name, current.index, current.attempt)
            self._observe(
                events.RoundAbandoned(round=current.index, attempt=current.attempt, reports=len(current.reported))
            )

    def _aggregate(self, current: rounds.Round) -> None:
        taken = self._ledger.rows(
            "SELECT device, scalars, examples FROM offers WHERE job = ? AND round = ? AND attempt = ? "
            "AND state = 'reported'",
            self._job.name, current.index, current.attempt,
        )  # fmt: skip
        reports = {row["device"]: TakenReport(row["scalars"], row["examples"]) for row in taken}
        result = aggregate(
            self._chain.theta,
            self._setting.manifest.parameters,
            self._job,
            current.index,
            self._chain.mean_square,
            reports,
        )
        log = self._blobs.add(encode_log(result.log))
        self._chain.keep(result.theta)
        closed = ClosedRound(
            index=current.index,
            base_sha256=result.log.base_sha256,
            result_sha256=result.log.result_sha256,
            log_sha256=log.sha256,
            log_size_bytes=log.size_bytes,
            mean_square=result.mean_square,
        )
        self._ledger.close_round(self._job.name, current.attempt, closed)
        self._chain.advance(result.theta, closed)
        self._round = None
        self._observe(
            events.RoundClosed(round=current.index, reports=len(reports), adapter_sha256=closed.result_sha256)
        )
        self._start_evaluation(current.index)

    # -- reports ------------------------------------------------------------------------------------------------

    def _take_report(self, device: Device, report: protocol.DeviceReport, size_bytes: int) -> None:
        if isinstance(report, protocol.Synced):
            self._prove(device, report.adapter_sha256)
            return
        state = self._round
        is_current = state is not None and (report.round, report.attempt) == (state.index, state.attempt)
        if isinstance(report, protocol.RoundReport):
            self._judge(device, report, size_bytes)
        elif state is not None and is_current and isinstance(report, protocol.PlanAccepted):
            self._count(device.name, up=size_bytes)
            self._round = rounds.accept(state, device.name)
            self._ledger.offer_is(self._job.name, state.index, state.attempt, device.name, "accepted")
        elif state is not None and is_current and isinstance(report, protocol.PlanRefused):
            self._fail_offer(device.name, rounds.refuse(state, device.name), OfferState.REFUSED, report.message)

    def _judge(self, device: Device, report: protocol.RoundReport, size_bytes: int) -> None:
        state = self._round
        reason = ""
        if state is None:
            outcome = "late" if report.round < len(self._chain.closed) else "unknown"
        else:
            outcome = rounds.judge(state, device.name, report.round, report.attempt, self._setting.clock())
        if outcome == "taken" and state is not None:
            try:
                self._check(report)
            except ProtocolError as error:
                outcome, reason = "invalid", error.what
                self._fail_offer(device.name, rounds.refuse(state, device.name), OfferState.REFUSED, error.what)
            else:
                self._record(device, state, report, size_bytes)
        ack = protocol.ReportAck(
            job=report.job,
            round=report.round,
            attempt=report.attempt,
            outcome=outcome,  # type: ignore[arg-type]
            reason=reason,
        )
        self._transport.publish(protocol.topic(self._setting.fleet, device.name, "report/ack"), protocol.encode(ack))

    def _check(self, report: protocol.RoundReport) -> None:
        """Check a report against its plan; the types were checked at the border."""
        unpack_scalars(report.scalars, self._job.steps, self._job.step.scalars_per_step)
        if report.adapter_sha256 != self._chain.sha256:
            raise ProtocolError(
                f"trained adapter {report.adapter_sha256[:12]}, the round's is {self._chain.sha256[:12]}",
                "the device fetches the adapter with its next plan",
            )
        if not math.isfinite(report.loss) or not math.isfinite(report.seconds):
            raise ProtocolError("loss or seconds are not finite", "look at the device")

    def _record(self, device: Device, state: rounds.Round, report: protocol.RoundReport, size_bytes: int) -> None:
        values = {
            "scalars": report.scalars,
            "examples": report.examples,
            "loss": report.loss,
            "seconds": report.seconds,
            "front_passes": report.front_passes,
            "back_passes": report.back_passes,
        }
        with self._ledger.transaction():
            self._ledger.take_report(self._job.name, state.index, state.attempt, device.name, values)
            self._count(device.name, up=size_bytes, down=report.blob_bytes)
        self._prove(device, report.adapter_sha256)
        self._round = rounds.report(state, device.name)
        self._observe(
            events.ReportTaken(
                round=state.index,
                device=device.name,
                loss=report.loss,
                seconds=report.seconds,
                bytes_up=size_bytes,
            )
        )

    def _prove(self, device: Device, sha256: str) -> None:
        device.adapter_sha256 = sha256
        self._ledger.device_proved(self._setting.fleet, device.name, sha256)

    # -- evaluation and end -------------------------------------------------------------------------------------

    def _start_evaluation(self, index: int | None) -> None:
        self._collect_evaluation(wait=True)
        self._evaluation = (index, self._executor.submit(self._setting.evaluate, self._chain.theta))

    def _collect_evaluation(self, *, wait: bool) -> None:
        if self._evaluation is None or not (wait or self._evaluation[1].done()):
            return
        index, future = self._evaluation
        self._evaluation = None
        result = future.result()
        if index is None:
            self._ledger.start_evaluated(self._job.name, result.loss, result.accuracy)
        else:
            self._ledger.round_evaluated(self._job.name, index, result.loss, result.accuracy)
        self._observe(events.Evaluated(round=index, loss=result.loss, accuracy=result.accuracy))

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
            self._handle_next(_TICK_S)
        return False

    def _send_sync(self, name: str) -> None:
        plan = protocol.SyncPlan(
            job=self._job.name,
            round=len(self._chain.closed),
            bundle_sha256=self._setting.bundle_sha256,
            adapter=self._reference(name),
            final=True,
            blob_url=self._setting.blob_url,
        )
        self._transport.publish(protocol.topic(self._setting.fleet, name, "plan"), protocol.encode(plan))
