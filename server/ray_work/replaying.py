"""Replay on workers: each rebuilds slices of the parameters, from its own place in every perturbation's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.forward_only.slices import replay_in_turn, replay_slice
from server.ray_work.replaying_in_place import mapped_files, replay_in_place
from server.ray_work.workers import Recipe, Shared, as_described

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.forward_only.slices import Replayed, ReplayFiles, ReplayTask, Slice
    from server.ray_work.workers import Workers


def replayed_on(workers: Workers, alone: int = CHUNK) -> Replayed:
    """Return what replays slices on workers.

    Args:
        workers: the workers.
        alone: an adapter of at most this many parameters is replayed by this process: sending it would take longer.
    """

    def replayed(task: ReplayTask, files: ReplayFiles) -> Iterator[Slice]:
        if task.size <= alone:
            return replay_in_turn(task, files)
        mapped = mapped_files(files) if workers.are_here else None
        if mapped is not None:
            return replay_in_place(workers, task, files, mapped)
        return workers.in_order(Recipe(as_described, Shared(task)), replay_slice, files.slices())

    return replayed
