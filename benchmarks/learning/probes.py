"""The rival that trains no layer: each device fits a linear probe to its own rows' features, and tells nobody.

A row's features cost one forward pass, once. The curve has one point: the mean over the devices' probes.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness.curves import point
from benchmarks.harness.fleet_run import cost_of_process
from edge_runtime.bundle.folder import open_bundle
from export.probe import linear_probe
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Mapping


def run_probes(settings: dict[str, Any], devices: Mapping[str, Path], test: Path) -> dict[str, Any]:
    """Fit each device's probe and evaluate it on the held-out rows.

    Args:
        settings: of the run, as convergence.run_one takes them.
        devices: each device's file of rows.
        test: the held-out rows.

    Returns:
        What convergence.run_one returns.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    labels = open_bundle(Path(settings["bundle"])).manifest.task.labels
    folder = look_at(Path(settings["model_dir"]))
    found = [linear_probe(folder, labels, rows, test, settings["max_tokens"]) for rows in devices.values()]
    loss, accuracy = (statistics.fmean(getattr(probe, name) for probe in found) for name in ("loss", "accuracy"))
    forwards = sum(math.ceil(probe.train_rows / settings["job"]["batch_size"]) for probe in found)
    end = point(forwards, loss, accuracy)
    return {
        "loss_start": round(math.log(len(labels)), 5),
        "loss_end": end[1],
        "accuracy_start": round(1 / len(labels), 5),
        "accuracy_end": end[2],
        "forwards": float(forwards),
        "curve": [end],
        "bytes_up_per_device_round": 0,
        "bytes_down_per_device_round": 0,
        **cost_of_process(time.monotonic() - started),
    }
