"""Whole fleets under [robust]: devices replay what the server made of their contributions, and end on its bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fleets import edge_configs, write_job
from hybrid import run_fleet

from server.errors import JobError
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

OPTIONS: list[tuple[dict[str, Any], bool]] = [
    ({"clip_scalars": 1.0, "max_examples": 10, "compare_paths": True, "quarantine_after": 2}, False),
    ({"clip_scalars": 1.0}, True),
    ({"aggregate": "median"}, True),
    ({"aggregate": "trimmed", "trim_share": 0.3, "clip_scalars": 2.0}, True),
]


@pytest.mark.parametrize(("robust", "shared"), OPTIONS)
def test_devices_end_on_the_server_s_bits_under_every_option(
    tmp_path: Path, tiny_bundle: Bundle, robust: dict[str, Any], shared: bool
) -> None:
    """run_in_process compares every device's adapter with the server's."""
    weighting = "examples" if "max_examples" in robust else "uniform"
    fields: dict[str, Any] = {
        "rounds": 2,
        "min_devices": 4,
        "min_reports": 4,
        "server_momentum": 0.3,
        "weighting": weighting,
    }
    path = write_job(tmp_path, {"shared_directions": shared}, **fields, robust=robust)
    fitted, bundle = load_job(path, tiny_bundle.path)
    run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 4))
    ledger = Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)
    compared = [len(cosines) for cosines in queries.agreement_of(ledger, "job")]
    assert compared == ([4, 4] if shared or robust.get("compare_paths") else [0, 0])
    ledger.close()


@pytest.mark.slow
def test_a_hybrid_fleet_with_bounded_deltas_that_is_stopped_ends_on_the_same_bits(
    tmp_path: Path, leveled: Bundle
) -> None:
    robust = {"max_delta_norm_ratio": 1.0, "max_delta_norm": 1000.0, "clip_scalars": 1.0, "max_examples": 10}
    whole = run_fleet(tmp_path / "whole", leveled, robust=robust)
    assert whole["adapter_sha256"] != run_fleet(tmp_path / "plain", leveled)["adapter_sha256"]
    root = tmp_path / "stopped"
    with pytest.raises(JobError, match="the job was stopped"):
        run_fleet(root, leveled, 3, robust=robust)
    assert run_fleet(root, leveled, robust=robust)["adapter_sha256"] == whole["adapter_sha256"]
