"""Workers of Ray: order, errors, what is said where there is no cluster, and what happens when one goes away."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port
from ray_clusters import processes_of_ray, two_nodes
from ray_pieces import about_ray, dies_always, late_ones_first, refuses, unpicklable
from round_logs import make_log

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.errors import ConfigError, CoveyError, NetworkError
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.protocol.step_rule import StepRule
from server.cli import main
from server.ray_work.connection import Connection
from server.ray_work.options import RayOptions, ray_options
from server.ray_work.replaying import replayed_on
from server.ray_work.workers import Recipe, Shared, Workers, as_described, open_workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.forward_only.slices import ReplayFiles, ReplayTask, Slice

NOTHING = Recipe(as_described, Shared(None))


@pytest.fixture
def sigterm() -> object:
    """What this process did about SIGTERM before; a cluster of an earlier test may have set it."""
    return signal.getsignal(signal.SIGTERM)


@pytest.fixture
def pair() -> Iterator[Workers]:
    """Two workers of this machine."""
    with open_workers(RayOptions(2)) as workers:
        assert workers is not None
        yield workers


@pytest.mark.slow
def test_answers_come_in_order_and_errors_as_they_were(sigterm: object, pair: Workers) -> None:
    """And Ray keeps to itself: no dashboard, no statistics, no stranger without the token; SIGTERM stays Covey's."""
    assert list(pair.in_order(NOTHING, late_ones_first, range(10))) == list(range(10))
    answers = pair.in_order(NOTHING, refuses, iter(range(10)))
    assert [next(answers) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ConfigError, match="item 3 is wrong") as raised:
        next(answers)
    assert raised.value.hint == "leave it out"
    assert signal.getsignal(signal.SIGTERM) is sigterm
    address, sends_statistics = pair.result(pair.submit(NOTHING, about_ray, None))
    assert not sends_statistics
    stranger = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", stranger, address]
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
    assert subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300).returncode == 1
    assert all("--disable-frontend" in one.cmdline() for one in processes_of_ray("dashboard/dashboard.py"))
    assert processes_of_ray("gcs_server")


@pytest.mark.slow
def test_a_piece_that_kills_every_worker_ends_with_an_error(pair: Workers) -> None:
    with pytest.raises(NetworkError, match="where its worker died"):
        pair.result(pair.submit(NOTHING, dies_always, 0))
    assert list(pair.in_order(NOTHING, late_ones_first, range(3))) == [0, 1, 2]  # the others go on


@pytest.mark.slow
def test_a_value_that_cannot_be_sent_is_the_pieces_fault(pair: Workers) -> None:
    with pytest.raises(CoveyError, match="pickle"):
        pair.result(pair.submit(NOTHING, unpicklable, 0))
    assert list(pair.in_order(NOTHING, late_ones_first, range(3))) == [0, 1, 2]


@pytest.mark.slow
def test_a_node_that_goes_away_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    """One of two machines is cut off while both have slices; what it had is computed again on the other."""
    theta, logs = theta_of(12 * CHUNK), [make_log(StepRule(back_perturbations=16), 8, steps=8, front_size=CHUNK)]
    alone = write_replayed(tmp_path / "alone", theta, logs)
    with two_nodes() as cluster, open_workers(RayOptions(address=cluster.address)) as workers:
        assert workers is not None

        replayed = replayed_on(workers)

        def cut_off(task: ReplayTask, files: ReplayFiles) -> Iterator[Slice]:
            for index, part in enumerate(replayed(task, files)):
                if index == 2:
                    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
                yield part

        found = write_replayed(tmp_path / "ray", theta, logs, replayed=cut_off)
    assert found == alone


@pytest.mark.slow
def test_another_version_on_a_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver finds when it joins; here without a process of its own, which would have the right version."""
    monkeypatch.setattr("server.ray_work.connection.__version__", "9.9.9")
    with two_nodes() as cluster, pytest.raises(ConfigError, match=r"this machine has Covey 9\.9\.9"):
        Connection(RayOptions(address=cluster.address))


def test_what_is_no_cluster_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate = ["simulate", "--devices", "2", "--rounds", "1", "--ray-address"]
    assert main([*simulate, f"127.0.0.1:{free_port()}"]) == NetworkError.exit_code
    assert "no Ray cluster answers" in capsys.readouterr().err
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert main([*simulate, f"127.0.0.1:{server.server_port}"]) == NetworkError.exit_code
        server.shutdown()
    assert "is no Ray cluster" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "host", "host:0", "host:x", ":6379"])
def test_addresses_of_another_form_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        ray_options(None, address)


def test_flags_that_do_not_fit_are_refused() -> None:
    assert ray_options(None, None) is None
    with pytest.raises(ConfigError, match="exclude each other"):
        ray_options(2, "host:6379")
    with pytest.raises(ConfigError, match="below 1"):
        ray_options(0, None)


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray.py").write_text('raise ImportError("there is none")')
    monkeypatch.syspath_prepend(tmp_path)  # the driver's process gets it, too
    assert main(["simulate", "--devices", "2", "--rounds", "1", "--workers", "2"]) == ConfigError.exit_code
    assert "pip install 'covey[ray]'" in capsys.readouterr().err


def theta_of(size: int = 2 * CHUNK) -> Any:
    import numpy as np

    return np.random.Generator(np.random.PCG64(6)).normal(size=size).astype(np.float32)
