"""Simulated devices come, announce themselves and go: by traces, by nights, and when a round makes them vanish."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.agent.birth import METHODS
from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import AnyMessage, encode_message
from edge_runtime.protocol.presence import Birth, Capability, DeviceState, ProfileMessage
from edge_runtime.protocol.topics import Kind, topic_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_runtime.protocol.profile import Profile
    from server.simulation.crowd import Crowd
    from server.simulation.figures import Counted
    from server.simulation.task import SimulatedTask
    from server.simulation.traces import TraceEvent
    from server.simulation.virtual import VirtualWorld

FLEET = "simulated"


def can_backprop(profile: Profile) -> bool:
    """Whether a profile has training graphs."""
    return any(graph.kind == "train" and graph.latencies for graph in profile.graphs)


class Presence:
    """Who is here. Messages are made when the server gets them, so a fleet that announces itself takes no memory.

    Args:
        world: the virtual clock, which delivers events.
        crowd: the devices.
        task: what they learn.
        counted: counts messages, and is told how many devices are here.
        tells_profiles: whether devices announce their profiles; without a bandit, nothing reads them.
    """

    def __init__(
        self, world: VirtualWorld, crowd: Crowd, task: SimulatedTask, counted: Counted, *, tells_profiles: bool
    ) -> None:
        self._world, self._crowd, self._task = world, crowd, task
        self._traffic, self._pace = counted.traffic, counted.pace
        self._kinds: tuple[Kind, ...] = ("birth", "profile", "state") if tells_profiles else ("birth", "state")
        self._epoch: str | None = None

    # -- why devices come and go ----------------------------------------------------------------------------------

    def follow(self, trace: Iterable[TraceEvent]) -> None:
        """Schedule the events of a trace."""
        for event in trace:
            for index in self._crowd.matching(event.device):
                self._world.at(event.at_s, functools.partial(self._happen, index, event))

    def _happen(self, index: int, event: TraceEvent) -> None:
        if event.slowdown is not None:
            self._crowd.slow_down(index, event.slowdown)
        if event.here is not None:
            self._want(index, is_on=event.here)

    def follow_changes(self, changes: Iterator[tuple[float, int, bool]]) -> None:
        """Switch all devices off, then on and off as told, by time; see availability.Nights.changes."""
        self._crowd.nobody_here()
        for at_s, index, is_on in changes:
            if at_s > 0:
                self._world.at(at_s, functools.partial(self._change, changes, index, is_on))
                break
            self._crowd.wanted[index] = is_on
            self._crowd.set_here(index, is_here=is_on)

    def _change(self, changes: Iterator[tuple[float, int, bool]], index: int, is_on: bool) -> None:
        at_s, next_index, next_is_on = next(changes)
        self._world.at(at_s, functools.partial(self._change, changes, next_index, next_is_on))
        self._want(index, is_on=is_on)

    def _want(self, index: int, *, is_on: bool) -> None:
        self._crowd.wanted[index] = is_on
        if is_on and not self._crowd.here[index]:
            self._join(index)
        elif not is_on:
            self.leave(index)

    def back(self, index: int) -> None:
        """Bring a device back that has vanished, unless it is here, or switched off meanwhile."""
        if self._crowd.wanted[index] and not self._crowd.here[index]:
            self._join(index)

    def leave(self, index: int) -> None:
        """Make a device vanish, if it is here: the broker sends its last will."""
        if not self._crowd.here[index]:
            return
        self._crowd.set_here(index, is_here=False)
        self._pace.here(self._crowd.here_count)
        known = self._crowd.known(index)
        if known is not None:
            known.report = None
        lost = DeviceState(state="lost", boot_id=self._boot_id(index))
        self._world.at(self._world.now, functools.partial(self._message, index, "state", lost))

    def _join(self, index: int) -> None:
        self._crowd.set_here(index, is_here=True)
        self._pace.here(self._crowd.here_count)
        for kind in self._kinds:
            self._world.at(self._world.now, functools.partial(self._announcement, index, kind))

    # -- what they say ----------------------------------------------------------------------------------------------

    def answer_hello(self, epoch: str) -> None:
        """Have every device that is here announce itself, one after the other, under the server's epoch."""
        self._epoch = epoch
        self._pace.here(self._crowd.here_count)
        left = ((index, kind) for index in self._crowd.all_here() for kind in self._kinds)

        def say_next() -> Message | None:
            following = next(left, None)
            if following is None:
                return None
            self._world.at(self._world.now, say_next)
            return self._announcement(*following)

        self._world.at(self._world.now, say_next)

    def _announcement(self, index: int, kind: Kind) -> Message:
        message: AnyMessage
        if kind == "birth":
            message = self._birth(index)
        elif kind == "profile":
            message = ProfileMessage(device=self._crowd.name(index), profile=self._crowd.profile(index))
        else:
            message = DeviceState(state="online", boot_id=self._boot_id(index), epoch=self._epoch)
        return self._message(index, kind, message)

    def _message(self, index: int, kind: Kind, message: AnyMessage) -> Message:
        payload = encode_message(message)
        self._traffic.presence_messages += 1
        self._traffic.presence_bytes += len(payload)
        return Message(topic_for(FLEET, self._crowd.name(index), kind), payload)

    def _boot_id(self, index: int) -> str:
        return f"{self._crowd.name(index)}-{self._crowd.starts[index]}"

    def _birth(self, index: int) -> Birth:
        profile, known = self._crowd.profile(index), self._crowd.known(index)
        trains, measured = can_backprop(profile), profile.measured
        levels = [LevelNeed(level, 0, 0) for level in self._task.manifest.levels]
        has = None if known is None else known.adapter_sha256
        return Birth(
            device=self._crowd.name(index),
            boot_id=self._boot_id(index),
            connection=1,
            epoch=self._epoch,
            covey_version="simulated",
            python_version="simulated",
            machine="simulated",
            runtimes={},
            methods=METHODS,
            rows=len(self._task.rows(index)),
            bundle_sha256=self._task.sha256,
            adapter_sha256=has or self._task.initial_sha256,
            capability=Capability(
                kind="backprop" if trains else "forward-only", levels=levels if trains else [], bytes_free=None
            ),
            execution_providers=UNSET if measured is None else measured.execution_providers,
        )
