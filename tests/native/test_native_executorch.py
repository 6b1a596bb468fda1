"""The core for apps on ExecuTorch: it gives Python's bits, checks golden vectors and runs no unchecked graph."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_library import build, needs_cmake

from edge_runtime.bundle.folder import Bundle
from edge_runtime.engines.golden import golden_cases
from edge_runtime.files.hashing import file_sha256
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule

HAS_EXECUTORCH = importlib.util.find_spec("executorch") is not None
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    needs_cmake,
    pytest.mark.skipif(not HAS_EXECUTORCH, reason="needs the executorch package: pip install executorch==1.5.1"),
]
BOTH = ("onnxruntime", "executorch")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, dict[str, Any]]]:
    from edge_runtime.engines.executorch_build import find_sdk

    folder = build(
        tmp_path_factory.mktemp("core"), "-DCOVEY_EXECUTORCH=ON", f"-Dexecutorch_DIR={find_sdk()}/share/cmake"
    )

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        result = subprocess.run(
            [str(folder / "covey-core"), *map(str, arguments), "--threads", "1", "--format", "json"],
            check=False,
            capture_output=True,
            text=True,
        )
        return result.returncode, json.loads(result.stdout)

    return run


@pytest.mark.parametrize(("kind", "task", "train"), [("bert", "classify-head", "B"), ("opt", "causal-lm", "B")])
def test_real_graphs_give_pythons_bits(
    command: Callable[..., tuple[int, dict[str, Any]]],
    tiny_export: Callable[..., Bundle],
    tmp_path: Path,
    kind: str,
    task: str,
    train: str,
) -> None:
    from edge_runtime.engines.choose import Engines

    bundle = tiny_export(kind, task=task, splits=(2,), train=train, runtimes=BOTH)
    code, found = command("verify", "--bundle", bundle.path, "--golden", 1)
    assert code == 0
    assert found["parity"] <= 1e-5
    rule = StepRule(front_perturbations=2, back_perturbations=2, eps=0.05)
    batch = next(golden_cases(bundle)).batch
    seeds = step_seeds(rule, 5, 2, "phone", 0)
    expected = spzo_step(Engines("executorch", 1).make_engine(bundle, 2), bundle.initial_adapter(), batch, rule, seeds)
    code, found = command(
        "step",
        "--bundle",
        bundle.path,
        "--split",
        2,
        "--device",
        "phone",
        "--job-seed",
        5,
        "--round",
        2,
        "--front-perturbations",
        2,
        "--back-perturbations",
        2,
        "--eps",
        0.05,
        "--scalars",
        tmp_path / "scalars",
    )
    assert code == 0
    assert np.abs(expected.scalars).max() > 1e-3
    assert (tmp_path / "scalars").read_bytes() == expected.scalars.tobytes()
    assert found["loss"] == expected.loss
    assert found["adapter_sha256"] == bundle.initial_sha256


def test_a_golden_value_that_is_not_finite_is_refused(
    command: Callable[..., tuple[int, dict[str, Any]]], tiny_export: Callable[..., Bundle], tmp_path: Path
) -> None:
    """The bad value is the first of several: later values must not hide it."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "bundle"
    shutil.copytree(tiny_export("bert", splits=(2,), runtimes=BOTH).path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    golden = copy / manifest["golden"]["file"]
    tensors = load_file(golden)
    assert tensors["0.logits"].numel() > 1
    tensors["0.logits"].view(-1)[0] = float("nan")
    save_file(tensors, golden)
    entry = next(entry for entry in manifest["files"] if entry["path"] == golden.name)
    entry |= {"sha256": file_sha256(golden), "size_bytes": golden.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, found = command("verify", "--bundle", copy, "--golden", 1)
    assert (code, found["error"]) == (5, "the golden vectors differ from PyTorch by inf")


def test_what_does_not_fit_is_not_run(
    command: Callable[..., tuple[int, dict[str, Any]]], tiny_export: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = tiny_export("bert", splits=(2,), runtimes=BOTH)
    code, found = command("step", "--bundle", bundle.path, "--split", 1)
    assert (code, found["error"]) == (5, "the bundle has no front graph for executorch at split 1; its splits are 2")
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    graph = copy / bundle.manifest.graph("front", 2, "executorch").file
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, found = command("step", "--bundle", copy, "--split", 2)
    assert code == 5
    assert "was altered" in found["error"]
