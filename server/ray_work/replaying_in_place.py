"""Replay on workers of this machine: they read slices from the files, and write them into the new ones themselves.

Only the borders of slices go through Ray. The command hashes what was written, from the same pages of memory.

Where a driver is lost, a worker of it may still write when another one has replayed the same slice. It writes the same
bits to the same place, so nothing changes. Once the replay has ended it finds no file any more: the names that workers
get are links in a folder of this replay alone.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import storage_error
from edge_runtime.forward_only.slices import Slice, part_of_moment, replay_slice
from server.ray_work.workers import Recipe, Shared, as_described

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.forward_only.slices import ReplayFiles, ReplayTask
    from edge_runtime.values import FloatVector
    from server.ray_work.workers import Workers

_TYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Mapped:
    """The files that a replay reads, each a map of the whole file; see ReplayFiles.

    Attributes:
        theta: the adapter before the first round.
        previous: the adapter before that; None: there is none.
        moment: the moment before the first round; None: zeros, or none is kept.
    """

    theta: Path
    previous: Path | None
    moment: Path | None


@dataclass(frozen=True)
class New:
    """Links to the new files of a replay; see ReplayFiles.

    Attributes:
        path: for the adapter after the last round.
        before_path: for the adapter before the last round; None: it is not kept.
        moment_path: for the moment; None: none is kept.
    """

    path: Path
    before_path: Path | None
    moment_path: Path | None


@dataclass(frozen=True)
class InPlace:
    """What every piece of a replay needs: the task, what is read, and what is written."""

    task: ReplayTask
    mapped: Mapped
    new: New


def mapped_files(files: ReplayFiles) -> Mapped | None:
    """Return the files that a replay reads; None: something is in this process's memory alone, or a part of a file."""
    theta = _file_of(files.theta)
    previous = None if files.previous is None else _file_of(files.previous)
    base = None if files.moment is None else files.moment.base
    moment = None if base is None else _file_of(base)
    if theta is None or (previous is None) != (files.previous is None) or (moment is None) != (base is None):
        return None
    return Mapped(theta, previous, moment)


def _file_of(array: FloatVector) -> Path | None:
    if not isinstance(array, np.memmap) or array.dtype != _TYPE or array.filename is None:
        return None
    if array.offset != 0 or array.mode != "r" or not array.flags.c_contiguous:
        return None
    path = Path(array.filename).resolve()
    return path if path.is_file() and path.stat().st_size == array.nbytes else None


def replay_in_place(workers: Workers, task: ReplayTask, files: ReplayFiles, mapped: Mapped) -> Iterator[Slice]:
    """Have workers replay the slices of mapped files into the new ones; yield them in their order.

    Args:
        workers: workers of this machine.
        task: the replay.
        files: its files.
        mapped: those that are read: see mapped_files.

    Raises:
        TrainingError, StorageError: see write_replayed.
        CoveyError: see Workers.result.
    """
    with tempfile.TemporaryDirectory(prefix="covey-replay-") as folder:

        def linked(path: Path, name: str) -> Path:
            os.truncate(path, files.theta.nbytes)
            link = Path(folder) / name
            link.symlink_to(path.resolve())
            return link

        new = New(
            linked(files.path, "adapter"),
            None if files.before_path is None else linked(files.before_path, "before"),
            None if files.moment is None else linked(files.moment.path, "moment"),
        )
        theta, before, moment = (
            None if link is None else np.memmap(link, dtype=_TYPE, mode="r")
            for link in (new.path, new.before_path, new.moment_path)
        )
        assert theta is not None  # noqa: S101 its link is no option
        recipe = Recipe(as_described, Shared(InPlace(task, mapped, new)))
        replayed = workers.in_order(recipe, replay_between, files.borders())
        for (start, stop), _ in zip(files.borders(), replayed, strict=True):
            part = slice(start, stop)
            yield Slice(
                start,
                theta[part],
                None if before is None else before[part],
                None if moment is None else moment[part],
                is_written=True,
            )


def replay_between(given: InPlace, borders: tuple[int, int]) -> None:
    """Replay a slice on a worker, from files into files.

    Args:
        given: the replay.
        borders: indexes of the slice's first parameter, and of the first one behind it.

    Raises:
        TrainingError: see replay_slice.
        StorageError: a file cannot be read or written, or the disk is full.
    """
    part = slice(*borders)
    new, mapped = given.new, given.mapped
    moment = None if new.moment_path is None else part_of_moment(_map(mapped.moment), part)
    theta, previous = _map(mapped.theta), _map(mapped.previous)
    assert theta is not None  # noqa: S101 its path is no option
    after = replay_slice(
        given.task, Slice(part.start, theta[part], None if previous is None else previous[part], moment)
    )
    for path, values in ((new.path, after.now), (new.before_path, after.before), (new.moment_path, after.moment)):
        if path is not None and values is not None:
            _write(path, values, part.start)


def _map(path: Path | None) -> FloatVector | None:
    try:
        return None if path is None else np.memmap(path, dtype=_TYPE, mode="r")
    except OSError as error:
        raise storage_error(error, path) from error


def _write(path: Path, values: FloatVector, start: int) -> None:
    """Write values into a file that is there."""
    left = np.ascontiguousarray(values, dtype=_TYPE).data.cast("B")
    at = _TYPE.itemsize * start
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while left:
                count = os.pwrite(file, left, at)
                left, at = left[count:], at + count
        finally:
            os.close(file)
    except OSError as error:
        raise storage_error(error, path.resolve()) from error
