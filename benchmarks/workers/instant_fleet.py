"""Devices that are messages: they train in no time, so what a round takes is the server's own time."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layout import Parameter
from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, decode_plan, encode_message
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted, Synced
from edge_runtime.protocol.topics import device_of, hello_topic, topic_for
from server import events
from server.compose import TICK_S, compose, open_stores
from server.evaluation import Evaluation, InlineEvaluator
from server.job.fitted import FittedJob
from server.job.job import Job
from server.rounds.services import Services
from server.simulation.bowl import Bowl
from server.swarm.answers import birth, instant_report

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.network.in_process import InProcessTransport
    from edge_runtime.protocol.messages import AnyMessage
    from edge_runtime.protocol.reports import RoundReport
    from edge_runtime.protocol.topics import Kind
    from edge_runtime.values import FloatVector
    from server.events import Event

FLEET = "bench"
_SPLIT = 8
_DEADLINE_S = 3600.0


class BigBowl:
    """A task of many parameters, whose loss is not computed: see adapters.Start.

    Args:
        parameters: number of trained parameters.
    """

    def __init__(self, parameters: int) -> None:
        bowl = Bowl(12, [_SPLIT], [], 1, np.random.Generator(np.random.PCG64(0)))
        front = parameters * _SPLIT // 12
        layout = [Parameter("front", [front], 0, 0), Parameter("back", [parameters - front], _SPLIT, front)]
        self.manifest = msgspec.structs.replace(bowl.manifest, parameters=layout)
        self.sha256 = bowl.sha256
        self._size = parameters

    @property
    def initial_sha256(self) -> str:
        """See adapters.Start."""
        return adapter_sha256(self.initial_adapter())

    def initial_adapter(self) -> FloatVector:
        """See adapters.Start."""
        start: FloatVector = np.zeros(self._size, dtype=np.float32)
        return start


class InstantFleet:
    """Devices that answer every message at once.

    Args:
        devices: number of devices.
        dead: how many of them announce themselves and then never answer.
    """

    def __init__(self, devices: int, *, dead: int = 0) -> None:
        self.hub = Hub()
        self._names = [f"device-{index:04}" for index in range(devices)]
        self._dead = set(self._names[:dead])
        self._transport: InProcessTransport = self.hub.join()
        self._transport.subscribe(hello_topic(FLEET))
        self._transport.subscribe(topic_for(FLEET, "+", "plan"))
        self._rng = np.random.Generator(np.random.PCG64(1))

    def turn(self) -> None:
        """Answer everything that has arrived."""
        while (event := self._transport.receive(0)) is not None:
            if isinstance(event, Message):
                self._answer(event)

    def _answer(self, message: Message) -> None:
        if message.topic == hello_topic(FLEET):
            epoch = decode_message(message.payload, Hello).epoch
            for name in self._names:
                self._send(name, "birth", birth(name, epoch))
                self._send(name, "state", DeviceState(state="online", boot_id="1", epoch=epoch))
            return
        name = device_of(message.topic)
        if name in self._dead:
            return
        plan = decode_plan(message.payload)
        if isinstance(plan, TrainPlan):
            self._send(name, "report", PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=name))
            self._send(name, "report", self._report(name, plan))
        elif isinstance(plan, SyncPlan):
            sha256 = plan.adapter.file.sha256
            proof = Synced(job=plan.job, round=plan.round, device=name, adapter_sha256=sha256, blob_bytes=0)
            self._send(name, "report", proof)

    def _report(self, name: str, plan: TrainPlan) -> RoundReport:
        scalars = self._rng.normal(scale=0.1, size=plan.steps * plan.rule.scalars_per_step).astype(np.float32)
        return instant_report(name, plan, scalars)

    def _send(self, name: str, kind: Kind, message: AnyMessage) -> None:
        self.hub.publish(topic_for(FLEET, name, kind), encode_message(message), retain=False)


def run_rounds(folder: Path, fleet: InstantFleet, rounds: int, parameters: int, accept_s: float) -> list[float]:
    """Run a job with a fleet of instant devices; return the seconds of each round.

    Args:
        folder: the server's state directory.
        fleet: the devices.
        rounds: number of rounds.
        parameters: number of trained parameters.
        accept_s: see Job.
    """
    opened_at: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, events.RoundOpened):
            opened_at.append(time.perf_counter())

    task = BigBowl(parameters)
    job = Job(name="job", eval_file="", rounds=rounds, eval_every=rounds, accept_s=accept_s, deadline_s=_DEADLINE_S)
    fitted = FittedJob.unchecked(job, task.manifest, task.sha256)
    stores = open_stores(folder)
    evaluator = InlineEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(fleet.hub.join(), stores.uploads, evaluator, time.monotonic, "http://nowhere")
    composed = compose(FLEET, fitted, task, stores, lambda: services, observe)
    composed.job_run.begin(resumed=False)
    composed.coordinator.handle_next(0)  # the connection: the server says hello
    fleet.turn()
    while composed.coordinator.handle_next(0):
        pass
    while not composed.job_run.step():
        fleet.turn()
        if not composed.coordinator.handle_next(0):
            composed.coordinator.handle_next(min(TICK_S, 0.01))
    opened_at.append(time.perf_counter())
    stores.ledger.close()
    return [after - before for before, after in itertools.pairwise(opened_at)]
