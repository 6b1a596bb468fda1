"""Whole fleets with both kinds of devices: they learn, agree, and resume to the same hash; jobs that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fleets import Fleet, free_port, write_job
from hybrid import (
    fleet,
    hybrid_job,
    run_fleet,
)
from layered import BowlEngines

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.errors import ConfigError
from server.errors import JobError
from server.job.fitted import fit_to_bundle
from server.job.job import read_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_devices

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_a_hybrid_fleet_learns_agrees_and_resumes_to_the_same_hash(leveled: Bundle, tmp_path: Path) -> None:
    """run_in_process checks that every device ends on the server's hash."""
    whole = run_fleet(tmp_path / "whole", leveled)
    for stop_after in (1, 3, 7, 12):
        root = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(JobError, match="was stopped"):
            run_fleet(root, leveled, stop_after)
        assert run_fleet(root, leveled)["adapter_sha256"] == whole["adapter_sha256"]
    ledger = Ledger(tmp_path / "whole" / "server" / LEDGER_FILE, read_only=True)
    offers = [offer for offer in queries.offers_of(ledger, "job") if offer.index == 3]
    assert [(offer.device, offer.level, offer.personal_layers) for offer in offers] == [
        ("deep", 3, 1),
        ("half", 3, 1),
        ("phone", None, None),
        ("tablet", None, None),
    ]
    theta = np.fromfile(tmp_path / "whole" / "server" / "blobs" / whole["adapter_sha256"], np.float32)
    assert adapter_sha256(theta) == whole["adapter_sha256"]
    bowl = BowlEngines().make_training_engine(leveled)
    assert bowl.loss(theta) < 0.7 * bowl.loss(leveled.initial_adapter())


def test_backprop_devices_train_alone_before_forward_only_ones_join(leveled: Bundle, tmp_path: Path) -> None:
    # All four must be there before the first round, also those that begin later.
    rules: dict[str, Any] = {"stld": {"forward_from": 2}, "min_reports": 2, "min_devices": 4}
    whole = run_fleet(tmp_path / "whole", leveled, **rules)
    with pytest.raises(JobError, match="was stopped"):
        run_fleet(tmp_path / "stopped", leveled, 5, **rules)
    assert run_fleet(tmp_path / "stopped", leveled, **rules)["adapter_sha256"] == whole["adapter_sha256"]
    ledger = Ledger(tmp_path / "whole" / "server" / LEDGER_FILE, read_only=True)
    offers = queries.offers_of(ledger, "job")
    assert {offer.device for offer in offers if offer.index < 2} == {"deep", "half"}
    assert {offer.device for offer in offers if offer.index >= 2} == {"deep", "half", "phone", "tablet"}


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"stld": {"forward_only": False}, "min_reports": 2, "min_devices": 2}, 4),
        ({"stld": {"device_levels": {"deep": 0, "half": 0}}}, 0),
        ({"server_momentum": 0.5, "stld": {"merging": "noise", "draw": "bernoulli"}}, 4),
    ],
    ids=["backprop only", "forward-only", "momentum"],
)
def test_jobs_of_one_kind_and_with_momentum(
    leveled: Bundle, tmp_path: Path, fields: dict[str, Any], files: int
) -> None:
    run_fleet(tmp_path / "run", leveled, **fields)
    ledger = Ledger(tmp_path / "run" / "server" / LEDGER_FILE, read_only=True)
    assert sum(closed.log_sha256 is None for closed in queries.closed_rounds(ledger, "job")) == files


JOB_TOML = 'name = "job"\neval_file = "test.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stld]\nlevels = [2, 9]\n", "level 9 of .stld. is not in the bundle; it has 1, 2, 3"),
        ("[stld.device_levels]\npi = 7\n", "level 7"),
        ('[stld]\nshape = "round"\n', "shape"),
        ("[stld]\npersonal_share = 2\n", "personal_share"),
        ("[stld]\nrescale = true\n", "rescale = true: the bundle's training graphs do not"),
        (
            'weighting = "uniform"\n[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n[stld]\n',
            "exclude each other",
        ),
    ],
)
def test_a_job_that_does_not_fit_is_named(leveled: Bundle, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.toml").write_text(JOB_TOML + text)
    with pytest.raises(ConfigError, match=message):
        fit_to_bundle(read_job(tmp_path / "job.toml"), leveled.manifest, leveled.sha256)


def test_a_bundle_without_training_graphs_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB_TOML + "[stld]\n")
    job = read_job(tmp_path / "job.toml")
    with pytest.raises(ConfigError, match="no training graphs"):
        fit_to_bundle(job, tiny_bundle.manifest, tiny_bundle.sha256)


def test_a_fleet_learns_on_onnx_runtime(graphs: Bundle, tmp_path: Path) -> None:
    fitted, bundle = hybrid_job(tmp_path, graphs, rounds=3, stld={"learning_rate": 0.01, "steps": 8})
    result = run_in_process(fitted, bundle, tmp_path / "server", fleet(tmp_path))
    assert result["loss_end"] < result["loss_start"] - 0.01
    rows = job_devices(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True), "job")
    assert [(row["device"], row["level"], row["reports"]) for row in rows] == [
        ("deep", 3, 3),
        ("half", 3, 3),
        ("phone", None, 3),
        ("tablet", None, 3),
    ]
    assert all(row["bytes_up"] > 0 and row["mean_seconds"] > 0 for row in rows)
    assert (rows[0]["peak_rss_bytes"] or 0) > 1e7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_and_a_device_killed_in_a_hybrid_round_end_on_the_same_bits(graphs: Bundle, tmp_path: Path) -> None:
    """Real processes; kill -9 of the server and of a backprop device, both started again."""

    def run(root: Path, *, kill: bool) -> str:
        root.mkdir()
        made = Fleet(root, graphs, free_port(), external=False)
        stld = {"steps": 6, "batch_size": 4, "personal_share": 0.34, "device_levels": {"b": 2, "c": 0}}
        job = write_job(root, rounds=3, steps=6, min_devices=3, min_reports=3, stld=stld)
        try:
            server = made.serve(job)
            devices = [made.device(name, seed) for seed, name in enumerate("abc")]
            if kill:
                server.wait_event("report")
                server.popen.kill()
                server.popen.wait()
                devices[0].popen.kill()
                devices[0].popen.wait()
                server = made.serve(job)
                devices[0] = made.device("a", 0)
            result = server.result()
            assert {device.result()["adapter_sha256"] for device in devices} == {result["adapter_sha256"]}
            assert not list((root / "server" / "deltas").glob("*"))
            return str(result["adapter_sha256"])
        finally:
            made.stop()

    assert run(tmp_path / "whole", kill=False) == run(tmp_path / "killed", kill=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_after_the_last_round_still_hands_out_its_adapter(graphs: Bundle, tmp_path: Path) -> None:
    """Real processes; each device ends only when it has the final adapter."""
    made = Fleet(tmp_path, graphs, free_port(), external=False)
    job = write_job(tmp_path, rounds=2, min_devices=2, min_reports=2)
    try:
        server = made.serve(job)
        devices = [made.device(name, seed) for seed, name in enumerate("ab")]
        server.wait_event("round_closed", 2)
        server.popen.kill()
        server.popen.wait()
        result = made.serve(job).result()
        assert result["rounds"] == 2
        assert {device.result()["adapter_sha256"] for device in devices} == {result["adapter_sha256"]}
    finally:
        made.stop()
