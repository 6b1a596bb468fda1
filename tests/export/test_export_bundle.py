"""Tests bundles: parity of their graphs with PyTorch, their content, and equal bytes of equal exports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from exports import generic_adapter, model_dir_of
from parity import assert_parity, batches, finished_folder
from tiny_models import LAYERS

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.bundle.layout import front_size, views
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases
from edge_runtime.files.tensor_file import map_tensors
from export.bundle.options import ExportOptions
from export.finished import load_finished
from export.model.lora import DEFAULT_TARGETS
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"splits": (1, 2, 3)}),
    ("bert", {"splits": (2,), "train": "AB", "pooling": "cls"}),
    ("bert-classifier", {}),
    ("roberta", {"layers": (2,)}),
    ("roberta-classifier", {}),
    ("llama", {"pooling": "last"}),
    ("llama", {"task": "classify-prompt"}),
    ("llama-tied", {"task": "classify-prompt", "train": "AB"}),
]
IDS = [f"{kind}-{'-'.join(map(str, options.values())) or 'own head'}" for kind, options in CASES]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=IDS)
def test_graphs_agree_with_pytorch(
    tiny_export: Callable[..., Bundle], kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """predict and front∘back of every split agree with the finished PEFT folder in PyTorch eager to 1e-5."""
    bundle = tiny_export(kind, **options)
    theta = generic_adapter(bundle)
    model = load_finished(finished_folder(bundle, theta, tmp_path / "adapter"), model_dir_of(bundle, kind))

    def eager(batch: Batch) -> torch.Tensor:
        return torch.as_tensor(model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)))

    assert_parity(bundle, theta, eager, batches())


@pytest.mark.parametrize(("kind", "options"), CASES, ids=IDS)
def test_bundles_are_whole(tiny_export: Callable[..., Bundle], kind: str, options: dict[str, Any]) -> None:
    bundle = tiny_export(kind, **options)
    verify_files(open_bundle(bundle.path))
    manifest = bundle.manifest
    assert manifest.model.layers == LAYERS
    weights = map_tensors(bundle.file(manifest.weights_file))
    used = {i.source for graph in manifest.graphs for i in graph.inputs if i.role == "weight"}
    assert used == set(weights)
    trained = {p.name for p in manifest.parameters}
    assert all(("lora_B" in name) or ("lora_" not in name) or manifest.lora.trained == ["A", "B"] for name in trained)
    for split in manifest.splits:
        front = {i.source for i in manifest.graph("front", split).inputs if i.role == "trainable"}
        back = {i.source for i in manifest.graph("back", split).inputs if i.role == "trainable"}
        assert front | back == trained
        assert not front & back
        assert front == {p.name for p in manifest.parameters if p.stop <= front_size(manifest.parameters, split)}
        boundary = manifest.graph("front", split).outputs
        assert all("batch" in output.shape or "tokens" in output.shape for output in boundary)


@pytest.mark.parametrize("matrix", ["lora_B", "classifier"])
def test_golden_vectors_notice_what_is_left_out(tiny_bundle: Bundle, matrix: str) -> None:
    """A head that starts at zero shrinks every difference, so the golden adapter must be large enough to show it."""
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    without = theta.copy()
    for name, view in views(without, tiny_bundle.manifest.parameters).items():
        if matrix in name:
            view[...] = 0
    predictor = Engines(threads=1).make_predictor(tiny_bundle)
    cases = list(golden_cases(tiny_bundle))

    def difference(adapter: FloatVector) -> float:
        return max(float(np.abs(predictor.logits(adapter, case.batch) - case.logits).max()) for case in cases)

    tolerance = tiny_bundle.manifest.golden.tolerance
    assert difference(theta) < tolerance
    assert difference(without) > 50 * tolerance


def test_a_bundle_says_nothing_about_the_machine_that_made_it(tiny_export: Callable[..., Bundle]) -> None:
    """A bundle holds no paths and no order of a set: an equal export has the same bytes on any machine."""
    for bundle in (tiny_export("bert-classifier"), tiny_export("llama", task="classify-prompt")):
        config = json.loads(bundle.file("adapter/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] is None
        assert config["target_modules"] == sorted(config["target_modules"])
        for path in bundle.path.rglob("*"):
            assert not path.is_file() or str(bundle.path.parents[1]).encode() not in path.read_bytes()


def test_tied_embeddings_are_stored_once(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama-tied", task="classify-prompt", train="AB")
    vocabulary = [name for name, t in map_tensors(bundle.file("weights.safetensors")).items() if t.shape[0] > 100]
    assert len(vocabulary) == 1


def test_no_graph_computes_logits_of_the_whole_vocabulary(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="classify-prompt")
    assert [output.shape for output in bundle.manifest.graph("predict").outputs] == [["batch", 2]]
    assert max(path.stat().st_size for path in bundle.file("graphs").iterdir()) < 300_000


def test_an_export_repeats_exactly(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """An export of the same model from another folder is the same bundle."""
    import shutil

    from export.bundle.bundle_writer import export_bundle

    folder = look_at(shutil.copytree(model_dir_of(tiny_bundle, "bert"), tmp_path / "elsewhere" / "bert"))
    task = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, 3.0, None)
    lora = LoraOptions(4, 8.0, DEFAULT_TARGETS["bert"], None, ["B"], seed=1)
    again = export_bundle(folder, ExportOptions(task, lora, [1, 2]), tmp_path / "bundle").bundle
    assert again.sha256 == tiny_bundle.sha256
