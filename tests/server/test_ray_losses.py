"""Ray is lost, its head or this machine's raylet: the command lives, joins it again, and ends on the same bits."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fleets import free_port, wait_for
from ray_clusters import driver_of, family_of, kill, processes_of_ray, started_head, two_nodes
from ray_pieces import late_ones_first, waits_for
from round_logs import make_log

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.errors import NetworkError, TrainingError
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.protocol.step_rule import StepRule
from server.errors import ToldToStopError
from server.ray_work.options import RayOptions
from server.ray_work.replaying import replayed_on
from server.ray_work.workers import Recipe, Shared, Workers, as_described, open_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.forward_only.slices import ReplayFiles, ReplayTask, Slice

NOTHING = Recipe(as_described, Shared(None))
pytestmark = pytest.mark.timeout(900)


def theta_of(size: int) -> Any:
    return np.random.Generator(np.random.PCG64(6)).normal(size=size).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Workers | None, Callable[[], object]], tuple[str, int]]:
    """Replays 12 slices of a mapped adapter on workers, or alone, and does something in the middle."""

    def write(workers: Workers | None, in_the_middle: Callable[[], object]) -> tuple[str, int]:
        theta_of(12 * CHUNK).tofile(tmp_path / "theta")
        theta = np.memmap(tmp_path / "theta", dtype="<f4", mode="r")
        logs = [make_log(StepRule(back_perturbations=16), 8, steps=8, front_size=CHUNK)]
        if workers is None:
            return write_replayed(tmp_path / "alone", theta, logs)
        replayed = replayed_on(workers)

        def disturbed(task: ReplayTask, files: ReplayFiles) -> Iterator[Slice]:
            for index, part in enumerate(replayed(task, files)):
                if index == 2:
                    in_the_middle()
                yield part

        return write_replayed(tmp_path / "ray", theta, logs, replayed=disturbed)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet/raylet", "gcs_server", pytest.param("spawn_main", marks=pytest.mark.long)])
def test_a_replay_goes_on_where_ray_is_lost_in_the_middle(written: Any, victim: str) -> None:
    """This machine's raylet, its head or the driver itself is killed: Ray is started anew, with the same bits."""
    with open_workers(RayOptions(2)) as workers:
        found = written(workers, lambda: kill(processes_of_ray(victim)))
        family = family_of(driver_of())
    assert found == written(None, lambda: None)
    wait_for(lambda: not any(process.is_running() for process in family), "end of everything that Ray has started")


@pytest.mark.slow
def test_this_machines_raylet_is_killed_while_it_has_slices(written: Any) -> None:
    """Another raylet of the machine is there: the driver joins the cluster by it."""
    with two_nodes() as cluster, open_workers(RayOptions(address=cluster.address)) as workers:

        def kill_ours() -> None:
            (ours,) = [node for node in cluster.list_all_nodes() if node.head]
            ours.kill_raylet()

        found = written(workers, kill_ours)
    assert found == written(None, lambda: None)


@pytest.mark.slow
def test_a_cluster_that_stays_away_is_said_and_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also to a second thread that waits; told to stop, nobody waits."""
    monkeypatch.setattr("server.ray_work.joining_again.PAUSES_S", (0.0, 0.2))
    told: list[bool] = []
    port = free_port()
    with started_head(port), open_workers(RayOptions(address=f"127.0.0.1:{port}"), lambda: bool(told)) as workers:
        assert workers is not None
        held = workers.submit(NOTHING, late_ones_first, 0)
        assert workers.result(held) == 0
        kill(processes_of_ray("raylet/raylet"))
        kill(processes_of_ray("gcs_server"))
        before = time.monotonic()
        for _ in range(2):
            with pytest.raises(NetworkError, match="could not be joined again in 2 attempts: no Ray cluster") as raised:
                workers.result(workers.submit(NOTHING, late_ones_first, 0))
            assert "covey job resume" in raised.value.hint
        assert time.monotonic() - before < 120
        assert f"the Ray cluster at 127.0.0.1:{port} is lost" in caplog.text
        told.append(True)
        with pytest.raises(ToldToStopError):
            workers.result(workers.submit(NOTHING, late_ones_first, 0))


@pytest.mark.slow
def test_a_piece_that_never_fits_ends_with_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Ray's limit is 1 % of the memory: it kills every worker, and would try for ever."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("RAY_task_oom_retry_delay_base_ms", "10")
    with open_workers(RayOptions(2)) as workers:
        assert workers is not None
        pieces = [workers.submit(NOTHING, waits_for, number, str(tmp_path / "go")) for number in range(2)]
        for piece in pieces:
            with pytest.raises(TrainingError, match=r"machine \S+ has too little memory .* were in use") as raised:
                workers.result(piece)
            assert "fewer workers" in raised.value.hint
