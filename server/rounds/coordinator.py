"""Coordinates a fleet: reads the devices' messages, keeps the roster, and hands each message to the job it is about."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.errors import CoveyError, ProtocolError
from edge_runtime.network.transport import Connected, GivenUp
from edge_runtime.protocol.messages import decode_device_report, decode_message, decode_plan, encode_message
from edge_runtime.protocol.predictions import Predicted
from edge_runtime.protocol.presence import Birth, DeviceState, Hello
from edge_runtime.protocol.reports import DeltaReport, DeviceReport, ReportAck, RoundReport, Synced
from edge_runtime.protocol.side_messages import LogLines, Released
from edge_runtime.protocol.topics import device_of, hello_topic, topic_for
from server.fleet.device_logs import DeviceLogs, request_log
from server.fleet.predict_requests import PredictRequests
from server.rounds.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.network.transport import Event, Message
    from server.fleet.devices import Device
    from server.rounds.job_run import JobRun
    from server.rounds.roster import Roster
    from server.rounds.services import Services

_LOG = logging.getLogger(__name__)
_HELLO_PAUSE_S = 1.0
"""Seconds between two hellos under one epoch, however many devices have not heard it: every device gets each."""
_HELLO_LATEST_S = 60.0
"""Seconds after which a hello is said although messages wait: since a device has announced itself without its epoch."""


class Coordinator:
    """The coordinator of one fleet; ``server.compose`` makes it.

    Args:
        roster: the fleet's devices.
        services: what it uses of the outside world.
        should_stop: asked while something is tried again, for want of file descriptors.

    Attributes:
        roster: the fleet's devices.
        logs: what the devices have sent of their logs.
        predictions: requests for predictions that wait for a device's answer.
        take_released: takes a device's answer to a release.
        forget_speaker: has the connection forget how far a device was heard; see SignedTransport.forget.
    """

    def __init__(self, roster: Roster, services: Services, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.roster = roster
        self.logs = DeviceLogs()
        self.forget_speaker: Callable[[str], None] = lambda _name: None
        self.take_released: Callable[[str, Released], None] = lambda _name, _released: None
        self._services, self._clock = services, services.clock
        self._should_stop = should_stop
        self._runs: dict[str, JobRun] = {}
        self._unheard: set[str] = set()  # devices that have announced themselves without this epoch
        self._unheard_since = math.inf  # when the first of them did
        self._hello_may_be_at = 0.0
        self.predictions = PredictRequests(services.transport, roster.fleet, services.clock)
        for kind in ("birth", "state", "profile", "report", "log", "released", "predicted"):
            services.transport.subscribe(topic_for(roster.fleet, "+", kind))

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that have sent a message, by name."""
        return self.roster.devices

    def ask_for_log(self, device: str, lines: int, follow_s: float) -> None:
        """Ask a device for its log; see device_logs.request_log. Safe to call from other threads."""
        request_log(self._services.transport, self.roster.fleet, device, lines, follow_s)

    @property
    def runs(self) -> Mapping[str, JobRun]:
        """The jobs at work, by name."""
        return self._runs

    def add(self, run: JobRun) -> None:
        """Hand messages about a job to it from now on."""
        self._runs[run.name] = run

    def remove(self, name: str) -> None:
        """Hand nothing to a job any more."""
        del self._runs[name]

    # -- messages -----------------------------------------------------------------------------------------------

    def handle_next(self, timeout_s: float) -> bool:
        """Wait for the next message and handle it; return whether there was one.

        Raises:
            StorageError: the ledger or a blob cannot be written.
        """
        event = self._next(timeout_s)
        if event is None:
            return False
        self._take(event)
        return True

    def handle_waiting(self, timeout_s: float, most: int) -> int:
        """Wait for the next message, and handle it with those that wait behind it; return how many there were.

        They wait for the disk together: what is answered is said once all of them are in the ledger.

        Args:
            timeout_s: seconds to wait for the first one.
            most: messages that are handled at once.

        Raises:
            StorageError: the ledger or a blob cannot be written; nothing was answered.
        """
        event = self._next(timeout_s)
        if event is None:
            return 0
        handled = 0
        with self._services.together():
            while event is not None:
                self._take(event)
                handled += 1
                event = self._next(0) if handled < most else None
        return handled

    def _next(self, timeout_s: float) -> Event | None:
        """Return the next event; a hello that is due is said where none waits: it may be the answer to the last one.

        Where messages always wait, it is said after _HELLO_LATEST_S.
        """
        event = self._services.transport.receive(0)
        if event is None or self._clock() >= self._unheard_since + _HELLO_LATEST_S:
            self._say_due_hello()
        return self._services.transport.receive(timeout_s) if event is None else event

    def _take(self, event: Event) -> None:
        if isinstance(event, Connected):
            self._begin_epoch()
            return
        if not event.payload:
            return  # an empty message: a device asks its broker whether it may publish (network/access.py)
        try:
            if isinstance(event, GivenUp):
                self._take_given_up(event)
            else:
                patiently(lambda: self._handle(event), self._should_stop)
        except ProtocolError as error:
            _LOG.warning("ignored a message on %s: %s", event.topic, error)
        except CoveyError:
            raise
        except Exception:  # noqa: BLE001 one message never ends the server
            _LOG.exception("ignored a message on %s by a fault of Covey; please report it", event.topic)

    def _begin_epoch(self) -> None:
        """Begin an epoch: the broker may have lost messages, or may retain those of devices that are gone."""
        self.roster.begin_epoch(self._services.new_epoch(), self._clock())
        self._say_hello()

    def _take_given_up(self, event: GivenUp) -> None:
        """Hand a plan that the broker does not take to its job; the transport has logged it, and what else it is."""
        if event.topic.endswith("/plan"):
            plan = decode_plan(event.payload)
            run = self._runs.get(plan.job)
            if run is not None:
                run.plan_given_up(self.roster.device(device_of(event.topic)), plan, event.finding)

    def _say_due_hello(self) -> None:
        """Say hello again where devices have not heard it: once for all that have announced themselves meanwhile.

        Of a large fleet, the announcements that a broker retains are read long before the answers to the hello: only
        who has not answered when nothing is left to read counts.
        """
        if self._unheard:
            self._unheard = {name for name in self._unheard if not self._has_heard(name)}
            self._unheard_since = self._unheard_since if self._unheard else math.inf
        if self._unheard and self._clock() >= self._hello_may_be_at:
            self._unheard, self._unheard_since = set(), math.inf
            self._hello_may_be_at = self._clock() + _HELLO_PAUSE_S
            self._say_hello()

    def _has_heard(self, name: str) -> bool:
        device = self.roster.devices.get(name)
        return device is None or (device.birth is not None and device.birth.epoch == self.roster.epoch)

    def _say_hello(self) -> None:
        if self.roster.epoch is not None:
            hello = encode_message(Hello(epoch=self.roster.epoch, covey_version=__version__))
            self._services.transport.publish(hello_topic(self.roster.fleet), hello, retain=True)

    def _handle(self, message: Message) -> None:
        name = device_of(message.topic)
        kind = message.topic.rsplit("/", 1)[-1]
        device = self.roster.device(name)
        if kind == "birth":
            self._take_birth(device, decode_message(message.payload, Birth))
        elif kind == "state":
            self._take_state(device, decode_message(message.payload, DeviceState))
        elif kind == "profile":
            self.roster.take_profile(device, message.payload)
        elif kind == "log":
            self._take_log(device, decode_message(message.payload, LogLines))
        elif kind == "released":
            self.take_released(name, decode_message(message.payload, Released))
        elif kind == "predicted":
            self.predictions.take(name, decode_message(message.payload, Predicted))
        else:
            report = decode_device_report(message.payload)
            if report.device != name:
                raise ProtocolError(
                    f"{name} sent a report in the name of {report.device}",
                    "check name in the edge.toml of both: every device needs a name of its own",
                )
            if device.quarantine is None:
                self._take_report(device, report, len(message.payload))

    def _take_birth(self, device: Device, birth: Birth) -> None:
        is_new = self.roster.take_birth(device, birth)
        if birth.epoch == self.roster.epoch:
            self.roster.heard(device, self._clock())
            self.roster.watch_name(birth, self._clock())
            if device.quarantine is not None:
                for run in self._runs.values():
                    run.gone(device)
                return
        elif self.roster.needs_hello(device, self._clock()):
            # It has not heard the hello: a broker need not send what it retains to a session that it knows already.
            self._unheard_since = min(self._unheard_since, self._clock())
            self._unheard.add(device.name)
        if is_new:
            self.predictions.again(device.name)
            for run in self._runs.values():
                run.connected_anew(device)

    def _take_state(self, device: Device, state: DeviceState) -> None:
        self.roster.take_state(device, state)
        if state.epoch == self.roster.epoch:
            self.roster.heard(device, self._clock())
        if state.state in ("lost", "offline") and not device.is_here:  # else it is of an earlier start
            for run in self._runs.values():
                run.gone(device)

    def take_outdated(self, topic: str, payload: bytes) -> None:
        """Look at a message that its device has signed, and that another start of the device has made outdated.

        It changes nothing, but it shows that the earlier start still runs: two machines have one identity.
        """
        name, kind = device_of(topic), topic.split("/", 4)[-1]
        if kind != "birth" or name not in self.roster.devices:
            return
        try:
            birth = decode_message(payload, Birth)
        except ProtocolError:
            return  # of another version of Covey
        if birth.epoch == self.roster.epoch and birth.device == name:
            self.roster.watch_name(birth, self._clock())

    def release(self, name: str) -> bool:
        """Let a device out of quarantine; return whether it is known.

        Its two machines numbered their messages each by itself: the one that is left may be behind.
        """
        self.forget_speaker(name)
        return self.roster.quarantine(name, None)

    def expel(self, name: str) -> None:
        """Enter that a device is gone for good: nothing that it says is believed any more, its last will neither."""
        device = self.roster.devices.get(name)
        if device is not None and device.birth is not None and device.state not in ("lost", "offline"):
            self._take_state(device, DeviceState(state="lost", boot_id=device.birth.boot_id))

    def _take_log(self, device: Device, lines: LogLines) -> None:
        self.logs.take(device.name, lines)
        if lines.reason == "crash":
            _LOG.warning("%s did not end properly; its last lines: covey device logs %s", device.name, device.name)

    def _take_report(self, device: Device, report: DeviceReport, size_bytes: int) -> None:
        self.roster.heard(device, self._clock())
        if isinstance(report, Synced):
            self.roster.prove(device, report.adapter_sha256)
        run = self._runs.get(report.job)
        if run is not None:
            ack = run.take_report(device, report, size_bytes)
        elif isinstance(report, (RoundReport, DeltaReport)):
            ack = ReportAck(
                job=report.job,
                round=report.round,
                attempt=report.attempt,
                outcome="unknown",
                reason=f"no job {report.job} is at work",
            )
        else:
            ack = None
        if ack is not None:
            topic = topic_for(self.roster.fleet, device.name, "report/ack")
            self._services.transport.publish(topic, encode_message(ack))
