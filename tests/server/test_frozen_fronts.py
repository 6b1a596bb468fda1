"""Jobs that freeze the front: what job.toml may say, who is too old for them, and fleets that end on the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from fleets import edge_configs, write_job

from edge_runtime.bundle.adapter import map_adapter
from edge_runtime.bundle.layout import front_size
from edge_runtime.errors import ConfigError
from server.job.epsilon import device_epsilon
from server.job.fitted import fit_to_bundle
from server.job.job import read_job
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_summary

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.mark.parametrize(
    ("front", "frozen"), [("train", 0), ("frozen", 6), ("train-after:0", 0), ("train-after:2", 2), ("train-after:9", 6)]
)
def test_a_round_is_frozen_as_the_job_says(tmp_path: Path, front: str, frozen: int) -> None:
    job = read_job(write_job(tmp_path, front=front, rounds=6))
    assert [job.rule_of(index).front_is_frozen for index in range(6)] == [index < frozen for index in range(6)]


def test_a_job_that_does_not_say_it_is_stored_as_before(tmp_path: Path) -> None:
    """A server that was updated compares a job with what its ledger has, where the field is missing."""
    job = read_job(write_job(tmp_path))
    assert msgspec.to_builtins(job)["front"] is None
    assert "front" not in msgspec.to_builtins(job)["step"]
    assert job.frozen_rounds == 0


@pytest.mark.parametrize(
    ("fields", "step", "message"),
    [
        ({"front": "freeze"}, {}, "front"),
        ({"front": "train-after:"}, {}, "front"),
        ({"front": "train-after:-1"}, {}, "front"),
        ({}, {"front": "frozen"}, "not of its \\[step\\]"),
        ({"front": "frozen", "adaptive": {"split": True}}, {}, "one split"),
        ({"front": "train-after:1", "bandit": {"splits": True}}, {}, "one split"),
        ({"front": "frozen"}, {"curvature": {}}, "curvature exclude each other"),
        ({"front": "train-after:1"}, {"keep_directions": 2}, "keep_directions exclude each other"),
        ({"front": "frozen"}, {"normalize": "std", "front_perturbations": 2, "back_perturbations": 1}, "of the back"),
        (
            {"front": "frozen", "bandit": {"back_perturbations": [1, 4]}},
            {"normalize": "std", "front_perturbations": 2},
            r"= 1, which \[bandit\] may choose: .* of the back",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, fields: dict[str, Any], step: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_job(write_job(tmp_path, step, **fields))


def test_a_job_that_would_train_nothing_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """The manifest is cut to what lies before the split: then nothing behind it is trained."""
    manifest = tiny_bundle.manifest
    front = [parameter for parameter in manifest.parameters if parameter.layer < 2]
    job = read_job(write_job(tmp_path, front="frozen", split=2))
    with pytest.raises(ConfigError, match="nothing is trained behind split 2"):
        fit_to_bundle(job, msgspec.structs.replace(manifest, parameters=front), tiny_bundle.sha256)


@pytest.mark.parametrize("front", ["frozen", "train-after:2"])
def test_a_fleet_ends_on_the_replays_bits(tmp_path: Path, tiny_bundle: Bundle, front: str) -> None:
    """Real agents: each proves the server's adapter by its hash; run_in_process raises where one does not."""
    path = write_job(tmp_path, {"front_perturbations": 2}, front=front, rounds=4, min_devices=3, split=1)
    fitted, bundle = load_job(path, tiny_bundle.path)
    result = run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 3))
    size, initial = front_size(bundle.manifest.parameters, 1), bundle.initial_adapter()
    adapter = map_adapter(tmp_path / "server" / "blobs" / result["adapter_sha256"], initial.size)
    assert (adapter[:size].tobytes() == initial[:size].tobytes()) == (front == "frozen")
    assert not np.array_equal(adapter[size:], initial[size:])


def test_a_private_job_accounts_for_the_scalars_that_were_sent(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Two steps of P2 = 4 scalars in the frozen round, and of P1 × P2 = 8 in the one after it."""
    privacy = {"clip": 1.0, "noise_multiplier": 20.0}
    path = write_job(
        tmp_path, {"front_perturbations": 2}, front="train-after:1", rounds=2, weighting="uniform", privacy=privacy
    )
    fitted, bundle = load_job(path, tiny_bundle.path)
    run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 1))
    summary = job_summary(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True), "job")
    assert summary["epsilon"] == pytest.approx(device_epsilon(2 * 4 + 2 * 8, 20.0, summary["delta"]))
