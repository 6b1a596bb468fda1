"""A fleet on a quantised base: every device and the server end on the same bits; a rounded product changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from fleets import edge_configs, write_job
from hybrid import fleet, hybrid_job

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.engines import least_versions
from edge_runtime.errors import ConfigError
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_devices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.mark.parametrize("products", ["float32", "int8"])
def test_forward_only_devices_replay_to_the_servers_bits(
    tiny_export: Callable[..., Bundle], tmp_path: Path, products: str
) -> None:
    """run_in_process checks that every device ends on the server's hash: replay reads scalars and seeds, no weights."""
    path = write_job(tmp_path, rounds=4, cohort=3, min_devices=6)
    fitted, bundle = load_job(path, tiny_export("bert", base="int4", products=products).path)
    result = run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 6))
    assert result["adapter_sha256"] != bundle.initial_sha256
    theta = np.fromfile(tmp_path / "server" / "blobs" / result["adapter_sha256"], "<f4")
    assert adapter_sha256(theta) == result["adapter_sha256"]
    assert result["loss_end"] != result["loss_start"]


def test_devices_of_both_kinds_learn_on_a_quantised_base(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    graphs = tiny_export("bert", base="int4", levels=(1, 3))
    stld = {"learning_rate": 0.01, "steps": 8, "device_levels": {"deep": 3, "half": 1}}
    fitted, bundle = hybrid_job(tmp_path, graphs, rounds=3, stld=stld)
    result = run_in_process(fitted, bundle, tmp_path / "server", fleet(tmp_path))
    assert result["loss_end"] < result["loss_start"] - 0.01
    rows = job_devices(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True), "job")
    assert [(row["device"], row["level"], row["reports"]) for row in rows] == [
        ("deep", 3, 3),
        ("half", 1, 3),
        ("phone", None, 3),
        ("tablet", None, 3),
    ]


def test_a_device_whose_runtime_is_too_old_says_so_before_it_loads_a_graph(
    tiny_export: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_export("llama", base="int8", task="causal-lm", levels=(2,)).manifest
    old = {"onnxruntime": "1.22.1", "numpy": "2.0.0", "tokenizers": "0.21.2"}
    monkeypatch.setattr(least_versions, "installed_versions", lambda _runtime: old)
    with pytest.raises(ConfigError, match=r"onnxruntime 1\.22\.1 is too old.*needs 1\.23 or newer") as refused:
        least_versions.check_versions(manifest, "onnxruntime")
    assert "pip install 'onnxruntime>=1.23'" in str(refused.value)
