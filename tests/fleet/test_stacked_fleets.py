"""A fleet in which some devices measure many directions in one call and others one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from fleets import edge_configs, write_job

from edge_runtime.agent.config import ForwardRules
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.engines.back_stack import BundleBackStack
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_devices_of_both_ways_replay_to_the_servers_bits(
    tiny_export: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run_in_process checks that every device ends on the server's hash: replay reads scalars and seeds."""
    counts: list[int] = []
    plain = BundleBackStack.losses

    def counted(stack: BundleBackStack, boundary: Any, batch: Any, count: int) -> list[float]:
        counts.append(count)
        return plain(stack, boundary, batch, count)

    monkeypatch.setattr(BundleBackStack, "losses", counted)
    path = write_job(tmp_path, rounds=3, cohort=4, min_devices=4)
    bundle_dir = tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB").path
    fitted, bundle = load_job(path, bundle_dir)
    devices = [
        msgspec.structs.replace(config, forward=ForwardRules(count))
        for config, count in zip(edge_configs(tmp_path, 4), (1, 2, 1, 2), strict=True)
    ]
    result = run_in_process(fitted, bundle, tmp_path / "server", devices)
    theta = np.fromfile(tmp_path / "server" / "blobs" / result["adapter_sha256"], "<f4")
    assert adapter_sha256(theta) == result["adapter_sha256"] != bundle.initial_sha256
    assert 2 in counts, "no device took several adapters in a call"  # golden vectors take three
