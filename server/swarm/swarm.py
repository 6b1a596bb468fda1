"""Runs a swarm: starts its processes, adds up what they see, and ends them properly."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from server.errors import JobError, error_of
from server.swarm.counts import Counts
from server.swarm.descriptors import allow_sessions
from server.swarm.login import FATAL
from server.swarm.worker import LEAVES_S, Orders, Tick, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from edge_runtime.network.address import BrokerAddress
    from edge_runtime.network.cause import Cause
    from server.swarm.members import Member
    from server.swarm.training import TrainingOptions

_LOOK_S = 0.25
_ENDS_S = 40.0
"""Seconds that a process may take, beside those that its sessions may take to say goodbye, until it is killed."""


@dataclass(frozen=True)
class SwarmOptions:
    """What a swarm is.

    Attributes:
        address: the broker.
        fleet: the fleet's name.
        members: the devices.
        server_key_file: the key with which the server signs; None: messages are not signed.
        tags: what jobs can name the devices by.
        processes: processes that share the sessions.
        rate: logins a second, of all processes together.
        for_s: seconds until it leaves; None: it stays until it is told to stop.
        every_s: seconds between two calls of ``observe``.
        training: what the sessions train; None: they train in no time.
        leaves_s: seconds that the sessions may take to say goodbye.
    """

    address: BrokerAddress
    fleet: str
    members: Sequence[Member]
    server_key_file: Path | None
    tags: Sequence[str]
    processes: int = 2
    rate: float = 200.0
    for_s: float | None = None
    every_s: float = 2.0
    training: TrainingOptions | None = None
    leaves_s: float = LEAVES_S


@dataclass
class Seen:
    """What a swarm has seen so far.

    Attributes:
        devices: sessions that it should have.
        counts: what they have seen.
        causes: why logins failed, the last cause of each kind.
        refusal: why a session refused a plan last; None: none did.
        seconds: since the start.
        all_connected_s: seconds from the start until all sessions were connected; None: they never were.
        reports_per_s: answers to reports a second, since the last call of ``observe``.
        most_reports_per_s: the largest of these.
        first_report_s: when the first answers to reports were seen, seconds after the start.
        last_report_s: when the last were.
        killed: processes that did not end when they were told to, and were killed.
    """

    devices: int
    counts: Counts = field(default_factory=Counts)
    causes: dict[str, Cause] = field(default_factory=dict)
    refusal: str | None = None
    seconds: float = 0.0
    all_connected_s: float | None = None
    reports_per_s: float = 0.0
    most_reports_per_s: float = 0.0
    first_report_s: float | None = None
    last_report_s: float | None = None
    killed: int = 0


def run_swarm(options: SwarmOptions, should_stop: Callable[[], bool], observe: Callable[[Seen], None]) -> Seen:
    """Run a swarm until it is over or told to stop; return what it has seen.

    Args:
        options: what it is.
        should_stop: asked several times a second.
        observe: called now and then with what was seen so far, which changes on.

    Raises:
        ConfigError: the limit of open files is too low.
        NetworkError: the broker lets nobody in, for a reason that waiting does not mend.
        JobError: a process of the swarm has died.
    """
    processes = max(1, min(options.processes, len(options.members)))
    allow_sessions(-(-len(options.members) // processes))
    seen, began = Seen(len(options.members)), time.monotonic()
    with _workers(options, processes) as pipes:
        observed_at, observed = began, 0
        while not should_stop():
            _collect(pipes, seen, _LOOK_S)
            now = time.monotonic()
            seen.seconds = now - began
            if seen.all_connected_s is None and seen.counts.connected == seen.devices:
                seen.all_connected_s = seen.seconds
            _stop_if_refused(seen)
            if now - observed_at >= options.every_s:
                seen.reports_per_s = (seen.counts.acknowledged - observed) / (now - observed_at)
                seen.most_reports_per_s = max(seen.most_reports_per_s, seen.reports_per_s)
                observed_at, observed = now, seen.counts.acknowledged
                observe(seen)
            if options.for_s is not None and seen.seconds >= options.for_s:
                break
        _end(pipes, seen, options.leaves_s + _ENDS_S)
    return seen


@contextlib.contextmanager
def _workers(options: SwarmOptions, count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    """Start the processes; yield them by their pipes; those that are left after the block are killed."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Connection, SpawnProcess] = {}
    try:
        for index in range(count):
            mine, theirs = context.Pipe()
            orders = Orders(
                options.address,
                options.fleet,
                options.members[index::count],
                options.server_key_file,
                options.tags,
                options.rate / count,
                options.training,
                options.leaves_s,
            )
            process = context.Process(target=run_worker, args=(theirs, orders), daemon=True)
            process.start()
            theirs.close()
            pipes[mine] = process
        yield pipes
    finally:
        for pipe, process in pipes.items():
            process.kill()
            process.join()
            pipe.close()


def _collect(pipes: dict[Connection, SpawnProcess], seen: Seen, timeout_s: float) -> None:
    """Add what the processes have sent; one that has ended is taken out of ``pipes``."""
    before = seen.counts.acknowledged
    for pipe in [pipe for pipe in wait(list(pipes), timeout_s) if isinstance(pipe, Connection)]:
        try:
            tick: Tick = pipe.recv()
        except (EOFError, ConnectionResetError):
            died = pipes[pipe]
            died.join()
            raise JobError(
                f"a process of the swarm has died ({_death(died.exitcode)})",
                "if it was killed for its memory (dmesg says it), take fewer --devices",
            ) from None
        _take(tick, seen)
        if tick.is_last:
            pipes.pop(pipe).join()
            pipe.close()
    if seen.counts.acknowledged > before:
        seen.last_report_s = seen.seconds
        if seen.first_report_s is None:
            seen.first_report_s = seen.seconds


def _death(code: int | None) -> str:
    return f"exit code {code}" if code is not None and code >= 0 else f"signal {-(code or 0)}"


def _take(tick: Tick, seen: Seen) -> None:
    seen.counts.add(tick.counts)
    seen.causes |= tick.causes
    seen.refusal = tick.refusal or seen.refusal
    if tick.error is not None:
        raise error_of(*tick.error)


def _stop_if_refused(seen: Seen) -> None:
    if seen.counts.connects == 0:
        for kind, cause in seen.causes.items():
            if kind in FATAL:
                raise cause.error()


def _end(pipes: dict[Connection, SpawnProcess], seen: Seen, patience_s: float) -> None:
    """Tell all processes to leave, and wait for what they have to say; those that are left are counted, and killed."""
    until = time.monotonic() + patience_s
    for pipe in pipes:
        with contextlib.suppress(BrokenPipeError):
            pipe.send("leave")
    while pipes and time.monotonic() < until:
        _collect(pipes, seen, _LOOK_S)
    seen.killed = len(pipes)
