"""A job with instant devices, with what it costs the server: processor seconds, messages, bytes, rows of the ledger."""

from __future__ import annotations

import gc
import itertools
import sqlite3
import time
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.workers.instant_fleet import FLEET, BigBowl, InstantFleet
from edge_runtime.network.transport import Message, WrappedTransport
from server import events
from server.compose import compose, open_stores
from server.evaluation import Evaluation, InlineEvaluator
from server.job.fitted import FittedJob
from server.job.job import Job
from server.rounds.services import Services
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import closed_rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.network.transport import Event, Transport
    from server.compose import Composed

_SERVER_S = 3600.0


@dataclass
class Flow:
    """Messages and bytes of the server's connection; MQTT headers, TLS and signatures not counted."""

    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0

    def since(self, before: Flow) -> Flow:
        """Return what has flowed since."""
        return Flow(
            self.received - before.received,
            self.received_bytes - before.received_bytes,
            self.sent - before.sent,
            self.sent_bytes - before.sent_bytes,
        )


class CountingTransport(WrappedTransport):
    """A transport that counts.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.flow = Flow()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See Transport."""
        self.flow.sent += 1
        self.flow.sent_bytes += len(payload)
        self._inner.publish(topic, payload, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        event = self._inner.receive(timeout_s)
        if isinstance(event, Message):
            self.flow.received += 1
            self.flow.received_bytes += len(event.payload)
        return event


@dataclass(frozen=True)
class Counted:
    """What a job cost the server.

    Attributes:
        online: devices that were online.
        cohort: reports of each round.
        replayed: parameters × directions that closing a round replays.
        announcements_s: processor seconds for the announcements of all devices.
        rounds_s: processor seconds of each round but the last, from its first plan to the next round's first.
        round_flow: messages and bytes of one round.
        log_bytes: bytes of one round's replay log.
        rows: rows in the ledger for each round, and for each device.
        ledger_bytes: the ledger's size at the end.
        rounds: number of rounds.
    """

    online: int
    cohort: int
    rounds: int
    replayed: int
    announcements_s: float
    rounds_s: list[float]
    round_flow: Flow
    log_bytes: int
    rows: tuple[float, float]
    ledger_bytes: int

    @property
    def round_s(self) -> float:
        """The cheapest round's processor seconds: what else the machine does only adds to them."""
        return min(self.rounds_s)


def count_rounds(folder: Path, online: int, cohort: int, rounds: int, parameters: int) -> Counted:
    """Run a job with instant devices and count what it costs the server; the devices' own work is left out.

    Args:
        folder: the server's state directory.
        online: number of devices.
        cohort: devices of a round.
        rounds: number of rounds.
        parameters: number of trained parameters.
    """
    fleet, devices_s = InstantFleet(online), 0.0
    marks: list[tuple[float, Flow]] = []

    def turn() -> None:
        nonlocal devices_s
        began = time.process_time()
        fleet.turn()
        devices_s += time.process_time() - began

    def mark() -> None:
        flow = transport.flow
        marks.append((time.process_time() - devices_s, flow.since(Flow())))

    def observe(event: events.Event) -> None:
        if isinstance(event, events.RoundOpened):
            mark()

    task = BigBowl(parameters)
    job = _job(online, cohort, rounds)
    fitted = FittedJob.unchecked(job, task.manifest, task.sha256)
    stores = open_stores(folder)
    transport = CountingTransport(fleet.hub.join())
    evaluator = InlineEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(transport, stores.uploads, evaluator, time.monotonic, "http://nowhere")
    composed = compose(FLEET, fitted, task, stores, lambda: services, observe)
    _run_rounds(composed, turn, mark, rounds)
    log_bytes = closed_rounds(stores.ledger, job.name)[-1].log_size_bytes or 0
    composed.job_run.close()
    stores.ledger.close()
    rows = _rows(folder / LEDGER_FILE)
    opened = marks[2:]
    flow = opened[-1][1].since(opened[-2][1])
    directions = job.steps * job.step.scalars_per_step
    return Counted(
        online=online,
        cohort=cohort,
        rounds=rounds,
        replayed=cohort * directions * parameters,
        announcements_s=marks[1][0] - marks[0][0],
        rounds_s=[after[0] - before[0] for before, after in itertools.pairwise(opened)],
        round_flow=flow,
        log_bytes=log_bytes,
        rows=((sum(rows.values()) - rows["devices"]) / rounds, rows["devices"] / online),
        ledger_bytes=(folder / LEDGER_FILE).stat().st_size,
    )


def _job(online: int, cohort: int, rounds: int) -> Job:
    """Return a job whose rounds wait for every device, however slow this machine is."""
    return Job(
        name="job",
        eval_file="",
        rounds=rounds,
        cohort=cohort,
        over_selection=1.0,
        min_devices=online,
        min_reports=cohort,
        eval_every=rounds,
        accept_s=_SERVER_S,
        deadline_s=_SERVER_S,
    )


def _run_rounds(composed: Composed, turn: Callable[[], None], mark: Callable[[], None], rounds: int) -> None:
    """Run a job; ``turn`` lets devices answer, ``mark`` is called before and after they have announced themselves."""
    composed.job_run.begin(resumed=False)
    composed.coordinator.handle_next(0)  # the connection: the server says hello
    turn()
    mark()
    while composed.coordinator.handle_next(0):
        pass
    mark()
    while len(composed.job_run.chain.closed) < rounds:
        composed.job_run.step()
        turn()
        while composed.coordinator.handle_next(0):
            composed.job_run.step()
            turn()


def memory_per_device(folder: Path, devices: int) -> float:
    """Return how many bytes of live memory the server keeps for each device that has announced itself.

    Args:
        folder: the server's state directory.
        devices: number of devices.
    """
    fleet = InstantFleet(devices)
    task = BigBowl(1200)
    job = Job(name="job", eval_file="", rounds=1, min_devices=devices + 1)
    fitted = FittedJob.unchecked(job, task.manifest, task.sha256)
    stores = open_stores(folder)
    evaluator = InlineEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(fleet.hub.join(), stores.uploads, evaluator, time.monotonic, "http://nowhere")
    composed = compose(FLEET, fitted, task, stores, lambda: services, lambda _event: None)
    composed.job_run.begin(resumed=False)
    composed.coordinator.handle_next(0)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    fleet.turn()
    while composed.coordinator.handle_next(0):
        pass
    composed.job_run.step()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    composed.job_run.close()
    stores.ledger.close()
    return (after - before) / devices


def _rows(path: Path) -> dict[str, int]:
    """Return the number of rows of each table that the server filled."""
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}  # noqa: S608
    connection.close()
    return counts
