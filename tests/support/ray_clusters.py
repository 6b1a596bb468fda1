"""Ray for tests: a cluster of two nodes on this machine, and pieces of work that go wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.forward_only.slices import ReplayTask, Slice, replay_slice
from server.ray_work.connection import demand_token, load_ray

if TYPE_CHECKING:
    from collections.abc import Iterator

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install 'covey[ray]'", allow_module_level=True)
demand_token()  # before Ray is imported: clusters and workers of one test process take the same token


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each; this process has not joined it."""
    load_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def sent_as_code() -> None:
    """Have the functions of this file sent to workers as code: they cannot import it."""
    import ray_clusters
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_clusters)


def processes_of_ray(name: str) -> list[psutil.Process]:
    """The processes of Ray that this process has started, by a part of their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


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
