"""A fleet in which some devices measure many directions in one call and others one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from fleets import edge_configs, write_job

from edge_runtime.agent.config import ForwardRules
from edge_runtime.bundle.adapter import adapter_sha256
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_devices_of_both_ways_replay_to_the_servers_bits(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """run_in_process checks that every device ends on the server's hash: replay reads scalars and seeds."""
    path = write_job(tmp_path, rounds=3, cohort=4, min_devices=4)
    bundle_dir = tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB").path
    hashes = []
    for name, counts in (("plain", (1, 1, 1, 1)), ("mixed", (1, 4, 1, 4))):
        fitted, bundle = load_job(path, bundle_dir)
        devices = [
            msgspec.structs.replace(config, state_dir=f"{config.state_dir}-{name}", forward=ForwardRules(count))
            for config, count in zip(edge_configs(tmp_path, 4), counts, strict=True)
        ]
        result = run_in_process(fitted, bundle, tmp_path / name, devices)
        theta = np.fromfile(tmp_path / name / "blobs" / result["adapter_sha256"], "<f4")
        assert adapter_sha256(theta) == result["adapter_sha256"] != bundle.initial_sha256
        hashes.append(result["adapter_sha256"])
    assert hashes[0] != hashes[1], "no device of the mixed fleet took several adapters in a call"
