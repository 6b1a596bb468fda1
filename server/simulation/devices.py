"""Simulated devices: real messages and real training steps, with durations from their profiles."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET

from edge_runtime.agent.reports import SessionFacts, delta_report, round_report
from edge_runtime.backprop.round import BackpropResult, BackpropSettings
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.round import RoundResult, RoundSettings
from edge_runtime.network.transport import Message
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.messages import AnyMessage, decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, SyncPlan, TrainPlan
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.reports import DeltaReport, PlanAccepted, ReportAck, RoundReport, Synced
from edge_runtime.protocol.round_log import RoundLog, decode_chain
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import device_of, hello_topic, topic_for
from server.bandit.arms import Arm, PriceBasis, price, price_left
from server.errors import JobError
from server.simulation.presence import FLEET
from server.simulation.training import InTurn, Order

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.values import FloatVector
    from server.simulation.crowd import Crowd, SimulatedDevice
    from server.simulation.figures import Traffic
    from server.simulation.presence import Presence
    from server.simulation.task import SimulatedTask
    from server.simulation.training import Trained, Trainer
    from server.simulation.virtual import VirtualWorld
    from server.storage.blobs import BlobStore

_ANY_RULE = StepRule()  # backprop rounds have no step rule
_AWAY_S = 300.0
_LINK_S = 0.5  # duration of a plan, an adapter and a report: a round's cost beside its steps


@dataclass(frozen=True)
class Chances:
    """What happens to devices by chance.

    Attributes:
        drop_out: probability that a device vanishes in a round, for five minutes.
        jitter: standard deviation of the logarithm of a round's duration.
        rng: source of drop-outs, jitter and noise.
    """

    drop_out: float
    jitter: float
    rng: np.random.Generator


class SimulatedFleet:
    """The devices' answers to what the server sends.

    Args:
        world: the virtual clock, which delivers events.
        task: what they learn.
        crowd: the devices.
        presence: who of them is here.
        served: the server's blobs: adapters and logs.
        uploaded: receives the devices' deltas.
        chances: how often they vanish, and how their times vary.
        traffic: counts messages and bytes.

    Attributes:
        trainer: trains their rounds.
        device_rounds: how many they have trained.
    """

    def __init__(
        self,
        world: VirtualWorld,
        task: SimulatedTask,
        crowd: Crowd,
        presence: Presence,
        served: BlobStore,
        uploaded: BlobStore,
        chances: Chances,
        traffic: Traffic,
    ) -> None:
        self._world = world
        self._task = task
        self._crowd, self._presence = crowd, presence
        self._served, self._uploaded = served, uploaded
        self._chances, self._rng = chances, chances.rng
        self._traffic = traffic
        self.trainer: Trainer = InTurn(task, chances.rng)
        self._adapters: dict[str, FloatVector] = {task.initial_sha256: task.initial_adapter()}
        self._moments: dict[str, FloatVector] = {}
        self.device_rounds = 0

    # -- messages from and to devices --------------------------------------------------------------------------------

    def _report(self, device: SimulatedDevice, message: AnyMessage, after_s: float) -> None:
        payload = encode_message(message)
        self._traffic.report_messages += 1
        self._traffic.report_bytes += len(payload)
        self._world.at(self._world.now + after_s, Message(topic_for(FLEET, device.name, "report"), payload))

    def deliver(self, topic: str, payload: bytes) -> None:
        """Handle a message that the server has published."""
        if topic == hello_topic(FLEET):
            self._presence.answer_hello(decode_message(payload, Hello).epoch)
            return
        index = self._crowd.index_of(device_of(topic))
        if not self._crowd.here[index]:
            return
        traffic, device = self._traffic, self._crowd.device(index)
        traffic.plan_messages += 1
        traffic.plan_bytes += len(payload)
        if topic.endswith("/report/ack"):
            self._take_ack(device, decode_message(payload, ReportAck))
            return
        plan = decode_plan(payload)
        self._fetch(device, plan.adapter)
        if isinstance(plan, SyncPlan):
            self._theta(plan.adapter)
            synced = Synced(
                job=plan.job,
                round=plan.round,
                device=device.name,
                adapter_sha256=plan.adapter.file.sha256,
                blob_bytes=0,
            )
            self._report(device, synced, _LINK_S)
            return
        if device.last_round is not None and device.last_round != plan.round:
            traffic.gaps[plan.round - device.last_round] += 1
        device.last_round = plan.round
        self._begin(device, plan)

    def _take_ack(self, device: SimulatedDevice, ack: ReportAck) -> None:
        if ack.outcome != "upload":
            device.report, device.delta = None, b""
        elif isinstance(device.report, DeltaReport):
            path = self._uploaded.temporary()
            path.write_bytes(device.delta)
            self._uploaded.adopt(path, device.report.delta.sha256)
            self._traffic.report_bytes += len(device.delta)
            self._report(device, device.report, 0.0)

    def _fetch(self, device: SimulatedDevice, adapter: AdapterRef) -> None:
        """Count what a device fetches, the way that a real one does; all of them share what is fetched."""
        has, wanted = device.adapter_sha256 or self._task.initial_sha256, adapter.file.sha256
        if has == wanted:
            return
        if adapter.log is not None and adapter.log_base_sha256 == has:
            self._traffic.logs += 1
            self._traffic.log_bytes += adapter.log.size_bytes
        else:
            self._traffic.files += 1
            self._traffic.file_bytes += adapter.file.size_bytes
        device.adapter_sha256 = wanted

    def _begin(self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan) -> None:
        accepted = PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=device.name)
        self._report(device, accepted, _LINK_S / 2)
        seconds = self._seconds(device, plan) * float(np.exp(self._chances.jitter * self._rng.standard_normal()))
        if self._rng.random() < self._chances.drop_out:
            gone_s = self._world.now + float(self._rng.random()) * seconds
            self._world.at(gone_s, functools.partial(self._presence.leave, device.index))
            self._world.at(gone_s + _AWAY_S, functools.partial(self._presence.back, device.index))
            return
        crowd, starts, trained = self._crowd, int(self._crowd.starts[device.index]), self._train(device, plan)

        def finish() -> None:
            if crowd.here[device.index] and crowd.starts[device.index] == starts:
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
            split = None if plan.frozen_split is UNSET else plan.frozen_split
            arm = Arm("backprop", level=plan.level, split=split, front_is_frozen=split is not None)
        priced = price(arm, basis, device.profile)
        if priced.profile_s is None:
            raise JobError(f"the profile of {device.name} has no times for {arm.name}", "give another profile")
        left = 1.0
        if _looks_up(plan):
            hits, misses = self._looked_up(device, plan)
            left = price_left(priced.front_share, misses / (hits + misses))
        return priced.profile_s * left * device.speed * self._crowd.slowdown(device.index)

    def _looked_up(self, device: SimulatedDevice, plan: TrainPlan | BackpropPlan) -> tuple[int, int]:
        """Return for how many rows of a round's batches a frozen front is looked up, and for how many it is run."""
        rows = len(self._task.rows(device.index))
        settings = plan if isinstance(plan, TrainPlan) else plan.stld
        used = settings.steps * min(settings.batch_size, rows)
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
        return self.trainer.begin(
            lambda: self._order(device.index, device.name, plan),
            plan.adapter.file.sha256,
            lambda: self._theta(plan.adapter),
        )

    def _order(self, index: int, name: str, plan: TrainPlan | BackpropPlan) -> Order:
        """Return a device's round; with a moment, its settings are as large as the adapter."""
        if isinstance(plan, TrainPlan):
            settings: RoundSettings | BackpropSettings = RoundSettings.of_plan(plan, name, self._moment(plan.adapter))
            split = plan.split
        else:
            rows_at_once = dict.fromkeys(self._task.manifest.levels, plan.stld.most_rows)
            settings, split = BackpropSettings.of_plan(plan, name, rows_at_once), 0
        return Order(index, split, settings)

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
        self._report(device, device.report, _LINK_S / 2)

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
        if _looks_up(plan):
            hits, misses = self._looked_up(device, plan)
            device.kept_rows += misses
            result = replace(result, front_hits=hits, front_misses=misses)
        facts = SessionFacts(device.name, len(self._task.rows(device.index)))
        return delta_report(plan, result, device.delta, facts)


def _looks_up(plan: TrainPlan | BackpropPlan) -> bool:
    """Whether a plan's front is frozen."""
    return plan.rule.front_is_frozen if isinstance(plan, TrainPlan) else plan.frozen_split is not UNSET
