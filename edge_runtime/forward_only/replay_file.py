"""Rebuilds an adapter from one file into another by replay, part by part; no whole adapter is read into memory.

An adapter may be a few KB of LoRA or every weight of a model. Both are float32, little-endian, in layout order, named
by the SHA-256 of their bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.errors import TrainingError, storage_error
from edge_runtime.files.hashing import file_sha256
from edge_runtime.forward_only.slices import ReplayFiles, replay_in_turn, replay_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edge_runtime.forward_only.slices import MomentFiles, Replayed
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.values import FloatVector


def write_replayed(
    path: Path,
    theta: FloatVector,
    logs: Sequence[RoundLog],
    previous: FloatVector | None = None,
    before_path: Path | None = None,
    moment: MomentFiles | None = None,
    replayed: Replayed = replay_in_turn,
) -> tuple[str, int]:
    """Write the adapter after one or more rounds to a new file, in one pass over the parameters.

    It is cut into slices of CHUNK parameters, 4 MiB. This process holds one of them at a time, or as many as
    ``replayed`` takes before it returns the first.

    Args:
        path: the new file, which is synced; the caller renames it.
        theta: the adapter before the first round, float32, (parameters,); may be mapped.
        logs: the rounds, in order; their hashes are not checked.
        previous: the adapter before ``theta``, needed if the first round has momentum.
        before_path: file for the adapter before the last round; None: it is not kept.
        moment: needed if the rounds' rule keeps a moment.
        replayed: replays the slices; any way gives the same bits.

    Returns:
        The SHA-256 of what was written to ``path``, and the number of terms in all rounds.

    Raises:
        ProtocolError, TrainingError: a log does not fit, or the result is not finite; no file is left.
        StorageError: the disk is full or not writable; no file is left.
    """
    digest = hashlib.sha256()
    task = replay_task(logs, theta.size)
    try:
        moment_path = None if moment is None else moment.path
        with _new_files(path, before_path, moment_path) as (file, before_file, moment_file):
            for part in replayed(task, ReplayFiles(theta, previous, moment, path, before_path, CHUNK)):
                data = part.now.astype("<f4", copy=False).data
                digest.update(data)
                if part.is_written:
                    continue
                file.write(data)
                if before_file is not None and part.before is not None:
                    before_file.write(part.before.astype("<f4", copy=False).data)
                if moment_file is not None and part.moment is not None:
                    moment_file.write(part.moment.astype("<f4", copy=False).data)
    except OSError as error:
        raise storage_error(error, path) from error
    return digest.hexdigest(), task.n_terms


@contextlib.contextmanager
def _new_files(*paths: Path | None) -> Iterator[list[Any]]:
    """Open files for writing; sync them if the body succeeds, remove them if it raises."""
    try:
        with contextlib.ExitStack() as stack:
            files = [None if path is None else stack.enter_context(path.open("wb")) for path in paths]
            yield files
            for file in files:
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
    except BaseException:
        for path in paths:
            if path is not None:
                path.unlink(missing_ok=True)
        raise


def follow_logs(
    path: Path,
    theta: FloatVector,
    base_sha256: str,
    logs: Sequence[RoundLog],
    previous: FloatVector | None = None,
    before_path: Path | None = None,
    moment: MomentFiles | None = None,
) -> None:
    """Write the adapter after a chain of logs, and check every hash in the chain.

    Args:
        path: see write_replayed.
        theta: see write_replayed.
        base_sha256: the hash of ``theta``.
        logs: see write_replayed.
        previous: see write_replayed.
        before_path: see write_replayed.
        moment: see write_replayed.

    Raises:
        TrainingError: the chain does not begin at ``theta``, has a gap, or ends on another adapter or moment than it
            says.
        ProtocolError, StorageError: see write_replayed.
    """
    reached = base_sha256
    for log in logs:
        if log.base_sha256 != reached:
            raise TrainingError(
                f"the replay logs have a gap: round {log.round} starts from adapter {log.base_sha256[:12]}, "
                f"not from {reached[:12]}",
                "fetch the adapter itself",
            )
        reached = log.result_sha256
    found, _ = write_replayed(path, theta, logs, previous, before_path, moment)
    what = "adapter"
    if found == reached and moment is not None:
        what, found, reached = "moment", file_sha256(moment.path), str(logs[-1].result_moment_sha256)
    if found != reached:
        for written in (path, before_path, None if moment is None else moment.path):
            if written is not None:
                written.unlink()
        raise TrainingError(
            f"the replay ended on {what} {found[:12]}, the server's is {reached[:12]}",
            "fetch the adapter itself, and report both machines' versions: the bits should be equal",
        )
