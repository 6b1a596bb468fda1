"""Ray for tests: clusters on this machine, and their processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from fleets import wait_for

from server.ray_work.connection import demand_token, load_ray

if TYPE_CHECKING:
    from collections.abc import Iterator

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install 'covey[ray]'", allow_module_level=True)
demand_token()  # before Ray is imported: clusters and workers of one test process take the same token
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
"""Workers import ray_pieces.py by its name."""


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


@contextlib.contextmanager
def started_head(port: int, cpus: int = 2) -> Iterator[psutil.Process]:
    """A cluster of one machine that ``ray start --head`` has begun at a port; what is left of it is killed."""
    head = ["start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
    quiet = ["--num-cpus", str(cpus), "--include-dashboard=false", "--disable-usage-stats"]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    popen = subprocess.Popen([*ray, *head, *quiet], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = psutil.Process(popen.pid)
    try:
        wait_for(lambda: any("raylet/raylet" in " ".join(one.cmdline()) for one in family_of(started)), "raylet")
        wait_for(lambda: answers(port), "head")
        yield started
    finally:
        kill([started, *family_of(started)])
        popen.wait()


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, at least one; some may end at this moment by themselves."""
    assert processes
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or only waits for whoever has started it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def driver_of(command: int | None = None) -> psutil.Process:
    """Ray's driver of this process, or of another one."""
    (driver,) = [one for one in psutil.Process(command).children() if "spawn_main" in " ".join(one.cmdline())]
    return driver


def family_of(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started, and they."""
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def processes_of_ray(name: str, ancestor: int | None = None) -> list[psutil.Process]:
    """The processes of Ray that this process, or another one, has started, by a part of their command line."""
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
