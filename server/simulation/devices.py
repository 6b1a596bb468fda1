"""Simulated devices: real messages and real training steps, with durations from their profiles."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET

from edge_runtime.agent.birth import METHODS
from edge_runtime.agent.reports import SessionFacts, delta_report, round_report
from edge_runtime.backprop.round import BackpropResult, BackpropSettings
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.round import RoundResult, RoundSettings
from edge_runtime.network.transport import Message
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.messages import AnyMessage, decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, SyncPlan, TrainPlan
from edge_runtime.protocol.presence import Birth, Capability, DeviceState, Hello, ProfileMessage
from edge_runtime.protocol.reports import DeltaReport, PlanAccepted, ReportAck, RoundReport, Synced
from edge_runtime.protocol.round_log import RoundLog, decode_chain
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import Kind, device_of, hello_topic, topic_for
from server.bandit.arms import Arm, PriceBasis, price, price_left
from server.errors import JobError
from server.simulation.training import InTurn, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.protocol.profile import Profile
    from edge_runtime.values import FloatVector
    from server.simulation.task import SimulatedTask
    from server.simulation.traces import TraceEvent
    from server.simulation.training import Trained, Trainer
    from server.simulation.virtual import VirtualWorld
    from server.storage.blobs import BlobStore

FLEET = "simulated"
_ANY_RULE = StepRule()  # backprop rounds have no step rule
_AWAY_S = 300.0
_LINK_S = 0.5  # duration of a plan, an adapter and a report: a round's cost beside its steps


@dataclass
class SimulatedDevice:
    """One device.

    Attributes:
        name: its name.
        index: its number.
        profile: the profile that it announces.
        speed: constant factor on the durations of its profile.
        slowdown: further factor on them at the moment, such as from heat.
        here: whether it is on.
        starts: number of its starts.
        report: its last report.
        delta: the delta of that report, which the server may ask for.
        kept_rows: rows whose activation of a frozen front it has kept.
    """

    name: str
    index: int
    profile: Profile
    speed: float = 1.0
    slowdown: float = 1.0
    here: bool = True
    starts: int = 0
    report: RoundReport | DeltaReport | None = None
    kept_rows: int = 0
    delta: bytes = b""

    @property
    def can_backprop(self) -> bool:
        """Whether its profile has training graphs."""
        return any(graph.kind == "train" and graph.latencies for graph in self.profile.graphs)


class SimulatedFleet:
    """All devices of a simulation.

    Args:
        world: the virtual clock, which delivers events.
        task: what they learn.
        devices: the devices.
        served: the server's blobs: adapters and logs.
        uploaded: receives the devices' deltas.
        drop_out: probability that a device vanishes in a round.
        jitter: standard deviation of the logarithm of a round's duration.
        rng: source of drop-outs, jitter and noise.

    Attributes:
        devices: the devices, by name.
        trainer: trains their rounds.
        device_rounds: how many they have trained.
    """

    def __init__(
        self,
        world: VirtualWorld,
        task: SimulatedTask,
        devices: Sequence[SimulatedDevice],
        served: BlobStore,
        uploaded: BlobStore,
        drop_out: float,
        jitter: float,
        rng: np.random.Generator,
    ) -> None:
        self._world = world
        self._task = task
        self.devices = {device.name: device for device in devices}
        self._served, self._uploaded = served, uploaded
        self._drop_out, self._jitter, self._rng = drop_out, jitter, rng
        self.trainer: Trainer = InTurn(task, rng)
        self._adapters: dict[str, FloatVector] = {task.initial_sha256: task.initial_adapter()}
        self._moments: dict[str, FloatVector] = {}
        self._epoch: str | None = None
        self.device_rounds = 0

    def follow(self, trace: Sequence[TraceEvent]) -> None:
        """Schedule the events of a trace."""
        for event in trace:
            for name in fnmatch.filter(self.devices, event.device):
                self._world.at(event.at_s, self._happening(self.devices[name], event))

    def _happening(self, device: SimulatedDevice, event: TraceEvent) -> Callable[[], None]:
        def happen() -> None:
            if event.slowdown is not None:
                device.slowdown = event.slowdown
            if event.here is True and not device.here:
                self._join(device)
            elif event.here is False and device.here:
                self._leave(device)

        return happen

    # -- messages from devices ---------------------------------------------------------------------------------------

    def _say(self, device: SimulatedDevice, kind: Kind, message: AnyMessage, after_s: float) -> None:
        payload = Message(topic_for(FLEET, device.name, kind), encode_message(message))
        self._world.at(self._world.now + after_s, payload)

    def _join(self, device: SimulatedDevice) -> None:
        device.here, device.starts = True, device.starts + 1
        self._announce(device)

    def _announce(self, device: SimulatedDevice) -> None:
        """Send birth, profile and state under the server's epoch."""
        boot_id, measured = f"{device.name}-{device.starts}", device.profile.measured
        levels = [LevelNeed(level, 0, 0) for level in self._task.manifest.levels]
        capability = Capability(
            kind="backprop" if device.can_backprop else "forward-only",
            levels=levels if device.can_backprop else [],
            bytes_free=None,
        )
        birth = Birth(
            device=device.name,
            boot_id=boot_id,
            connection=1,
            epoch=self._epoch,
            covey_version="simulated",
            python_version="simulated",
            machine="simulated",
            runtimes={},
            methods=METHODS,
            rows=len(self._task.rows(device.index)),
            bundle_sha256=self._task.sha256,
            adapter_sha256=self._task.initial_sha256,
            capability=capability,
            execution_providers=UNSET if measured is None else measured.execution_providers,
        )
        self._say(device, "birth", birth, 0.0)
        self._say(device, "profile", ProfileMessage(device=device.name, profile=device.profile), 0.0)
        self._say(device, "state", DeviceState(state="online", boot_id=boot_id, epoch=self._epoch), 0.0)

    def _leave(self, device: SimulatedDevice) -> None:
        device.here, device.report = False, None
        boot_id = f"{device.name}-{device.starts}"
        self._say(device, "state", DeviceState(state="lost", boot_id=boot_id), 0.0)

    # -- messages to devices ----------------------------------------------------------------------------------

    def deliver(self, topic: str, payload: bytes) -> None:
        """Handle a message that the server has published."""
        if topic == hello_topic(FLEET):
            self._epoch = decode_message(payload, Hello).epoch
            for device in self.devices.values():
                if device.here:
                    self._announce(device)
            return
        device = self.devices[device_of(topic)]
        if not device.here:
            return
        if topic.endswith("/report/ack"):
            ack = decode_message(payload, ReportAck)
            if ack.outcome == "upload" and isinstance(device.report, DeltaReport):
                path = self._uploaded.temporary()
                path.write_bytes(device.delta)
                self._uploaded.adopt(path, device.report.delta.sha256)
                self._say(device, "report", device.report, 0.0)
            return
        plan = decode_plan(payload)
        if isinstance(plan, SyncPlan):
            self._theta(plan.adapter)
            synced = Synced(
                job=plan.job,
                round=plan.round,
                device=device.name,
                adapter_sha256=plan.adapter.file.sha256,
                blob_bytes=0,
            )
            self._say(device, "report", synced, _LINK_S)
            return
        self._begin(device, plan)

    def _begin(self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan) -> None:
        accepted = PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=device.name)
        self._say(device, "report", accepted, _LINK_S / 2)
        seconds = self._seconds(device, plan) * float(np.exp(self._jitter * self._rng.standard_normal()))
        if self._rng.random() < self._drop_out:
            gone_s = self._world.now + float(self._rng.random()) * seconds
            self._world.at(gone_s, lambda: self._leave(device) if device.here else None)
            self._world.at(gone_s + _AWAY_S, lambda: None if device.here else self._join(device))
            return
        starts, trained = device.starts, self._train(device, plan)

        def finish() -> None:
            if device.here and device.starts == starts:
                self._finish(device, plan, seconds, trained())

        self._world.at(self._world.now + _LINK_S / 2 + seconds, finish)

    def _seconds(self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan) -> float:
        manifest = self._task.manifest
        layers, tokens = manifest.model.layers, manifest.task.max_tokens
        if isinstance(plan, TrainPlan):
            basis = PriceBasis(layers, tokens, plan.steps, plan.batch_size, plan.rule)
            arm = Arm(
                "forward",
                split=plan.split,
                back_perturbations=plan.rule.back_perturbations,
                front_is_frozen=plan.rule.front_is_frozen,
            )
        else:
            stld = plan.stld
            basis = PriceBasis(layers, tokens, stld.steps, stld.batch_size, _ANY_RULE, stld)
            arm = Arm("backprop", level=plan.level)
        priced = price(arm, basis, device.profile)
        if priced.profile_s is None:
            raise JobError(f"the profile of {device.name} has no times for {arm.name}", "give another profile")
        left = 1.0
        if isinstance(plan, TrainPlan) and plan.rule.front_is_frozen:
            hits, misses = self._looked_up(device, plan)
            left = price_left(priced.front_share, misses / (hits + misses))
        return priced.profile_s * left * device.speed * device.slowdown

    def _looked_up(self, device: SimulatedDevice, plan: TrainPlan) -> tuple[int, int]:
        """Return for how many rows of a round's batches a frozen front is looked up, and for how many it is run."""
        rows = len(self._task.rows(device.index))
        used = plan.steps * min(plan.batch_size, rows)
        misses = max(0, min(used, rows - device.kept_rows))
        return used - misses, misses

    def _theta(self, adapter: AdapterRef) -> FloatVector:
        """Return an adapter, by replay if the server sent a log; each is made and checked once for all devices."""
        wanted = adapter.file.sha256
        if wanted not in self._adapters:
            base = None if adapter.log_base_sha256 is None else self._adapters.get(adapter.log_base_sha256)
            data = None if adapter.log is None else self._served.read(adapter.log.sha256)
            if base is not None and data is not None:
                theta = base
                for log in decode_chain(data):
                    previous = None if log.previous_sha256 is None else self._adapters[log.previous_sha256]
                    moment = self._moment_before(log)
                    theta = replay(theta, log, previous, moment)
                    if moment is not None:
                        self._moments[adapter_sha256(moment)] = moment
            else:
                raw = self._served.read(wanted)
                if raw is None:
                    raise JobError(f"the server does not serve adapter {wanted[:12]}", "this is a fault of Covey")
                theta = np.frombuffer(raw, dtype="<f4")
            if adapter_sha256(theta) != wanted:
                raise JobError(f"replay did not lead to adapter {wanted[:12]}", "this is a fault of Covey")
            self._adapters[wanted] = theta
        return self._adapters[wanted]

    def _moment_before(self, log: RoundLog) -> FloatVector | None:
        """Return a copy of the moment that a log starts from; None: its rule keeps none."""
        if not log.rule.keeps_moment:
            return None
        before = log.base_moment_sha256
        return self._moments[before].copy() if isinstance(before, str) else np.zeros_like(self._task.initial_adapter())

    def _moment(self, adapter: AdapterRef) -> FloatVector | None:
        """Return the moment beside an adapter, by replay or as the server serves it; None: there is none."""
        if adapter.moment is UNSET:
            return None
        wanted = adapter.moment.sha256
        if wanted not in self._moments:
            raw = self._served.read(wanted)
            if raw is None:
                raise JobError(f"the server does not serve moment {wanted[:12]}", "this is a fault of Covey")
            self._moments[wanted] = np.frombuffer(raw, dtype="<f4")
        return self._moments[wanted]

    def _train(self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan) -> Callable[[], Trained]:
        """Begin a device's round; return what waits for its result."""
        if isinstance(plan, TrainPlan):
            settings: RoundSettings | BackpropSettings = RoundSettings.of_plan(
                plan, device.name, self._moment(plan.adapter)
            )
            split = plan.split
        else:
            rows_at_once = dict.fromkeys(self._task.manifest.levels, plan.stld.most_rows)
            settings, split = BackpropSettings.of_plan(plan, device.name, rows_at_once), 0
        order = Order(device.index, split, settings)
        return self.trainer.begin(order, plan.adapter.file.sha256, lambda: self._theta(plan.adapter))

    def _finish(
        self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan, seconds: float, trained: Trained
    ) -> None:
        self.device_rounds += 1
        result = replace(trained, seconds=seconds)
        if isinstance(plan, TrainPlan):
            assert isinstance(result, RoundResult)  # noqa: S101 of the plan's kind
            device.report = self._forward_report(device, plan, result)
        else:
            assert isinstance(result, BackpropResult)  # noqa: S101 of the plan's kind
            device.report = self._backprop_report(device, plan, result)
        self._say(device, "report", device.report, _LINK_S / 2)

    def _forward_report(self, device: SimulatedDevice, plan: TrainPlan, result: RoundResult) -> RoundReport:
        if plan.rule.front_is_frozen:
            hits, misses = self._looked_up(device, plan)
            device.kept_rows += misses
            passes = -(-misses // plan.batch_size)
            result = replace(result, front_hits=hits, front_misses=misses, front_passes=passes)
        return round_report(plan, result, SessionFacts(device.name, len(self._task.rows(device.index))))

    def _backprop_report(self, device: SimulatedDevice, plan: BackpropPlan, result: BackpropResult) -> DeltaReport:
        manifest = self._task.manifest
        device.delta = encode_delta(result.movement, manifest.parameters, result.sent, manifest.model.layers)
        facts = SessionFacts(device.name, len(self._task.rows(device.index)))
        return delta_report(plan, result, device.delta, facts)
