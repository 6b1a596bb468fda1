"""Pieces of work for workers of Ray that go wrong, or tell where they are; workers import this file."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from edge_runtime.errors import ConfigError
from edge_runtime.forward_only.slices import ReplayTask, Slice, replay_slice


def dies_once(task: ReplayTask, part: Slice, marker: str) -> Slice:
    """Replay a slice; the first worker that gets the third one is killed in the middle."""
    replayed = replay_slice(task, part)
    if part.start == 2000:
        with contextlib.suppress(FileExistsError):
            Path(marker).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return replayed


def dies_always(_made: object, _item: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(_made: object, item: int) -> int:
    if item == 3:
        raise ConfigError("item 3 is wrong", "leave it out")
    return item * item


def late_ones_first(_made: object, item: int) -> int:
    time.sleep(0.05 * (10 - item))
    return item


def waits_for(_made: object, item: int, path: str) -> int:
    """Answer when a file is there."""
    Path(f"{path}.{item}").touch()
    while not Path(path).exists():
        time.sleep(0.02)
    return item


def about_ray(_made: object, _item: object) -> tuple[str, bool]:
    """The address of the head, and whether Ray sends statistics."""
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled

    return ray.get_runtime_context().gcs_address, usage_stats_enabled()


def unpicklable(_made: object, _item: object) -> object:
    """Ray can send it to the driver, as code; the driver cannot send it on."""
    return lambda: None
