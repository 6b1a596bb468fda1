"""Jobs on workers of Ray, simulated and with a server of their own: the same adapter as in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleets import edge_configs, wait_for, write_job
from ray_clusters import driver_of, has_ended, kill, processes_of_ray, two_nodes
from tiny_models import reviews, write_rows

from edge_runtime.errors import NetworkError
from server.events import RoundClosed
from server.ray_work.options import RayOptions
from server.ray_work.replaying import replayed_on
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.simulation.run import SimulateOptions, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from server.events import Event

SMALL = SimulateOptions(devices=8, rounds=3, cohort=4, drop_out=0.1)


def simulated(options: SimulateOptions) -> dict[str, Any]:
    result = simulate(options)
    assert result is not None
    return {name: value for name, value in result.items() if name not in ("wall_s", "cpu_s", "peak_rss_mb")}


def real(folder: Path, bundle: Bundle, step: dict[str, Any] | None = None, **fields: Any) -> SimulateOptions:
    """A simulation with a model, in which some devices backpropagate."""
    data = write_rows(reviews(120, 1), folder / "rows.jsonl")
    job = write_job(folder, {"learning_rate": 0.01, **(step or {})}, schedule="constant", **fields)
    return dataclasses.replace(SMALL, bundle=bundle.path, data=data, job=job)


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_simulated_devices_learn_the_same_on_workers(
    tmp_path: Path, tiny_export: Callable[..., Bundle], count: int
) -> None:
    stld = {"levels": [2, 3], "steps": 2, "learning_rate": 0.01}
    options = real(tmp_path, tiny_export("bert", levels=(1, 2, 3)), stld=stld)
    alone = simulated(options)
    assert set(alone["arms"]) > {"forward"}
    assert simulated(dataclasses.replace(options, ray=RayOptions(count))) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"step": {"sign_momentum": 0.5}, "server_momentum": 0.3},
        {"step.curvature": {"decay": 0.8}},
        {"front": "frozen"},
        {"privacy": {"clip": 1.0, "noise_multiplier": 0.5}, "weighting": "uniform"},
    ],
    ids=["sign", "curvature", "frozen", "private"],
)
def test_every_rule_is_simulated_the_same_on_two_machines(
    tmp_path: Path, tiny_bundle: Bundle, changes: dict[str, Any]
) -> None:
    options = dataclasses.replace(real(tmp_path, tiny_bundle, **changes), policy=None)
    alone = simulated(options)
    with two_nodes() as cluster:
        assert simulated(dataclasses.replace(options, ray=RayOptions(address=cluster.address))) == alone


@pytest.mark.slow
def test_a_servers_job_ends_the_same_with_workers(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet's server replays in slices and evaluates on two workers; small slices stand for a large model."""
    monkeypatch.setattr("edge_runtime.forward_only.replay_file.CHUNK", 500)
    monkeypatch.setattr("server.serving.loaded_job.replayed_on", lambda workers: replayed_on(workers, alone=0))
    ended = []
    for name, ray in (("alone", None), ("ray", RayOptions(2))):
        root = tmp_path / name
        root.mkdir()
        fitted, bundle = load_job(write_job(root, min_devices=3, eval_every=1), tiny_bundle.path)
        ended.append(run_in_process(fitted, bundle, root / "server", edge_configs(root, 3), ray=ray))
    assert ended[0]["adapter_sha256"] == ended[1]["adapter_sha256"]
    assert (ended[0]["loss_end"], ended[0]["accuracy_end"]) == (ended[1]["loss_end"], ended[1]["accuracy_end"])


@pytest.mark.slow
def test_a_job_goes_on_after_its_cluster_has_lost_its_head(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster stays away: an error; given again, without Ray, the job ends on the bits of an undisturbed one."""
    monkeypatch.setattr("server.ray_work.joining_again.PAUSES_S", (0.0, 0.2))
    everyone = {"min_devices": 3, "min_reports": 3, "max_attempts": 1000}  # also where they come back one by one
    path = write_job(tmp_path, eval_every=1, rounds=4, **everyone)
    fitted, bundle = load_job(path, tiny_bundle.path)
    (tmp_path / "calm").mkdir()
    calm = run_in_process(fitted, bundle, tmp_path / "calm" / "server", edge_configs(tmp_path / "calm", 3))
    (tmp_path / "lost").mkdir()
    devices, server = edge_configs(tmp_path / "lost", 3), tmp_path / "lost" / "server"
    closed: list[object] = []
    with two_nodes() as cluster:

        def observe(event: Event) -> None:
            if isinstance(event, RoundClosed):
                closed.append(event)
                if len(closed) == 2:
                    driver = driver_of()
                    kill(processes_of_ray("gcs_server"))
                    wait_for(lambda: has_ended(driver), "the driver's end")  # until then raylets would still compute

        with pytest.raises(NetworkError, match="is lost"):
            run_in_process(fitted, bundle, server, devices, observe, ray=RayOptions(address=cluster.address))
    assert 2 <= len(closed) < 4
    again = run_in_process(fitted, bundle, server, devices)
    assert again["adapter_sha256"] == calm["adapter_sha256"]
    assert again["loss_end"] == calm["loss_end"]
