"""A server with workers of Ray lives where Ray is lost, and takes everything of Ray with it when it ends."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from fleets import free_port, wait_for, write_job
from ray_clusters import driver_of, family_of, has_ended, kill, processes_of_ray, started_head

if TYPE_CHECKING:
    from fleets import Fleet, Process

pytestmark = pytest.mark.timeout(900)


def started(fleet: Fleet, *flags: str) -> Process:
    server = fleet.stay("--mqtt-port", str(fleet.port), *flags)
    server.wait_event("serving")
    return server


def all_have_ended(processes: list[psutil.Process]) -> bool:
    return all(has_ended(process) for process in processes)


def finish(fleet: Fleet, server: Process, name: str) -> None:
    """Submit a job, and wait for its end: its evaluations are made by workers."""
    folder = fleet.root / name
    folder.mkdir()
    job = write_job(folder, name=name, min_devices=1, rounds=2)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path))
    wait_for(lambda: fleet.covey("job", "show", name)["state"] == "finished", "the end of the job")
    assert server.popen.poll() is None


@pytest.mark.slow
def test_an_idle_server_lives_where_its_cluster_ends_and_uses_the_next_one(fleet: Fleet) -> None:
    """The head is killed, and the driver ends; the server stays, and trains on the next cluster at the address."""
    port = free_port()
    with started_head(port):
        server = started(fleet, "--ray-address", f"127.0.0.1:{port}")
        fleet.device("pi-1", 0, stays=True)
        finish(fleet, server, "before")
        driver = driver_of(server.popen.pid)
        kill(processes_of_ray("gcs_server"))
        wait_for(lambda: has_ended(driver), "the driver's end")
    assert server.popen.poll() is None
    with started_head(port):
        finish(fleet, server, "after")
        assert "was joined again" in server.stderr.read_text()
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(120) == 0


@pytest.mark.slow
def test_what_ray_has_started_ends_with_its_server(fleet: Fleet) -> None:
    """Ended by Ctrl-C to all of its processes, as a terminal sends it; killed with -9, and its raylet before it."""
    server = started(fleet, "--workers", "1")
    fleet.device("pi-1", 0, stays=True)
    (raylet,) = processes_of_ray("raylet/raylet", server.popen.pid)
    first = family_of(driver_of(server.popen.pid))
    raylet.kill()
    wait_for(lambda: all_have_ended(first), "the end of the first Ray")
    finish(fleet, server, "job")
    family = family_of(psutil.Process(server.popen.pid))
    assert any("raylet/raylet" in " ".join(process.cmdline()) for process in family)
    for process in (driver_of(server.popen.pid), server.popen):
        process.send_signal(signal.SIGINT)
    assert server.popen.wait(120) == 0
    wait_for(lambda: all_have_ended(family), "the end of all that the server has started")
    again = started(fleet, "--workers", "1")
    family = family_of(psutil.Process(again.popen.pid))
    os.kill(again.popen.pid, signal.SIGKILL)
    again.popen.wait()
    wait_for(lambda: all_have_ended(family), "the end of all that the killed server has started")
