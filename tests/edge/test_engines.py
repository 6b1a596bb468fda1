"""The ONNX Runtime engine: a real step against an independent PyTorch computation of the same step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.engines.onnx_engine import make_session
from edge_runtime.engines.predict import predict
from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, FRONT, rademacher
from edge_runtime.protocol.step_rule import StepRule
from export.finished import load_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector

BATCH = pad([[2, 8, 9, 10, 3], [2, 30, 3], [2, 11, 12, 13, 14, 15, 16, 3]], [0, 1, 1], 0)


def torch_loss(bundle: Bundle, model_dir: Path, theta: FloatVector, tmp_path: Path) -> float:
    """The loss in PyTorch alone: the adapter goes through PEFT's own file format."""
    import shutil

    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(bundle.file("adapter"), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for p in bundle.manifest.parameters:
        tensors[p.name] = torch.from_numpy(theta[p.offset : p.stop].reshape(p.shape).copy())
    save_file(tensors, adapter / "adapter_model.safetensors")
    model = load_finished(adapter, model_dir)
    with torch.no_grad():
        logits = model(torch.from_numpy(BATCH.input_ids), torch.from_numpy(BATCH.attention_mask))
        return float(torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(BATCH.labels)))


@pytest.mark.parametrize("split", [1, 2])
def test_scalars_agree_with_pytorch(tiny_bundle: Bundle, split: int, tmp_path: Path) -> None:
    """Every scalar of a nested step is recomputed in PyTorch from its definition."""
    model_dir = tiny_bundle.path.parents[1] / "models" / "bert"
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    engine = Engines(threads=1).make_engine(tiny_bundle, split)
    cut = engine.front_workspace.size
    assert 0 < cut < theta.size
    rule = StepRule(front_perturbations=2, back_perturbations=2, eps=0.05)
    seeds = step_seeds(rule, 1, 0, "device", 0)
    result = spzo_step(engine, theta, BATCH, rule, seeds)
    for index, back in enumerate(seeds.back):
        front = seeds.front[index // 2]
        z = np.concatenate([rademacher(front, FRONT, 0, cut), rademacher(back, BACK, 0, theta.size - cut)])
        plus, minus = (
            torch_loss(tiny_bundle, model_dir, (theta + sign * np.float32(0.05) * z).astype(np.float32), tmp_path)
            for sign in (1, -1)
        )
        assert result.scalars[index] == pytest.approx((plus - minus) / 0.1, abs=2e-5)


def test_front_and_back_are_predict(tiny_bundle: Bundle) -> None:
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    whole = Engines(threads=1).make_predictor(tiny_bundle).logits(theta, BATCH)
    for split in tiny_bundle.manifest.splits:
        engine = Engines(threads=1).make_engine(tiny_bundle, split)
        engine.front_workspace[:] = theta[: engine.front_workspace.size]
        engine.back_workspace[:] = theta[engine.front_workspace.size :]
        assert np.abs(engine.back_outputs(engine.front(BATCH), BATCH)["logits"] - whole).max() < 1e-6


def test_a_boundary_outlives_the_next_run(tiny_bundle: Bundle) -> None:
    """The step keeps y⁺ while it computes y⁻: one must not overwrite the other."""
    engine = Engines(threads=1).make_engine(tiny_bundle, 2)
    theta = tiny_bundle.initial_adapter()
    engine.back_workspace[:] = theta[engine.front_workspace.size :] + 0.1
    engine.front_workspace[:] = 0.0
    first = engine.front(BATCH)
    before = engine.back_outputs(first, BATCH)["logits"].copy()
    engine.front_workspace[:] = 0.5
    second = engine.front(BATCH)
    assert np.array_equal(engine.back_outputs(first, BATCH)["logits"], before)
    assert not np.array_equal(engine.back_outputs(second, BATCH)["logits"], before)


def test_padding_changes_nothing(tiny_bundle: Bundle) -> None:
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    predictor = Engines(threads=1).make_predictor(tiny_bundle)
    alone = predictor.logits(theta, pad([[2, 30, 3]], [0], 0))
    assert np.abs(predictor.logits(theta, BATCH)[1] - alone[0]).max() < 1e-6


def test_predictions_have_probabilities(tiny_bundle: Bundle) -> None:
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    found = predict(tiny_bundle, theta, ["a good film", "bad"], Engines(threads=1))
    for prediction in found:
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
        assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())


def test_bad_input_is_an_error_not_a_crash(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot load"):
        make_session(str(tmp_path / "broken.onnx"), 1)
    with pytest.raises(BundleError, match="no front graph at split 7"):
        Engines().make_engine(tiny_bundle, 7)
    with pytest.raises(TrainingError, match="failed on a batch"):
        Engines(threads=1).make_predictor(tiny_bundle).logits(tiny_bundle.initial_adapter(), pad([[10_000, 3]], [0], 0))


def test_the_prompt_task_steps_too(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="classify-prompt")
    engine = Engines(threads=1).make_engine(bundle, 2)
    rule = StepRule(back_perturbations=3)
    batch = pad([[5, 6, 7, 8], [9, 10]], [0, 1], 0)
    result = spzo_step(engine, bundle.initial_adapter(), batch, rule, step_seeds(rule, 0, 0, "d", 0))
    assert np.isfinite(result.scalars).all()
    assert np.abs(result.scalars).max() > 0
