"""Replay on workers: each rebuilds slices of the parameters, from its own place in every perturbation's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.forward_only.slices import replay_in_turn, replay_slice
from server.ray_work.workers import Recipe, Shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.forward_only.slices import Replayed, ReplayTask, Slice
    from server.ray_work.workers import Workers

ValueT = TypeVar("ValueT")


def as_described(value: ValueT) -> ValueT:
    """Return a description as it is: see Recipe.make."""
    return value


def replayed_on(workers: Workers, alone: int = CHUNK) -> Replayed:
    """Return what replays slices on workers.

    Args:
        workers: the workers.
        alone: an adapter of at most this many parameters is replayed by this process: sending it would take longer.
    """

    def replayed(task: ReplayTask, parts: Iterator[Slice]) -> Iterator[Slice]:
        if task.size <= alone:
            return replay_in_turn(task, parts)
        return workers.in_order(Recipe(as_described, Shared(task)), replay_slice, parts)

    return replayed
