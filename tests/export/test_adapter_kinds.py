"""Adapters of every kind that PEFT writes: computed as PEFT does, trained where asked for, or refused with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from parity import finished_folder
from peft_adapters import ADAPTER, WORDS, batch_for, eager, peft_logits, task_of, write_adapter
from safetensors.torch import load_file

from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from export.bundle.bundle_writer import export_bundle
from export.bundle.options import ExportOptions
from export.bundle.trainables import choose_trainables
from export.errors import ExportError
from export.model.build import build
from export.model.lora import make_layout
from export.model.options import LoraOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.build import ExportModel

QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("qwen2", {**QV, "use_rslora": True}),
    "rank-pattern": ("qwen2", {**QV, "rank_pattern": {"v_proj": 2}}),
    "alpha-pattern": ("qwen2", {**QV, "alpha_pattern": {"v_proj": 32}}),
    "dora": ("qwen2", {**QV, "use_dora": True}),
    "bias-all": ("qwen2", {**QV, "bias": "all"}),
    "bias-lora-only": ("qwen2", {**QV, "bias": "lora_only"}),
    "bias-of-b": ("qwen2", {**QV, "lora_bias": True}),
    "all-linear": ("qwen2-tied", {"target_modules": "all-linear"}),
    "regex": ("qwen2", {"target_modules": r".*\.self_attn\.(q|o)_proj"}),
    "exclude": ("qwen2", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "gaussian": ("qwen2", {**QV, "init_lora_weights": "gaussian"}),
    "dropout": ("qwen2", {**QV, "lora_dropout": 0.3}),
    "save-norm": ("qwen2", {**QV, "modules_to_save": ["norm"]}),
    "save-inside-layers": ("qwen2", {**QV, "modules_to_save": ["o_proj"]}),
    "save-embedding": ("qwen2", {**QV, "modules_to_save": ["embed_tokens"]}),
    "save-output-embedding": ("qwen2", {**QV, "modules_to_save": ["lm_head"]}),
    "save-tied-embedding": ("qwen2-tied", {**QV, "modules_to_save": ["embed_tokens"]}),
    "classifier-dora-bias": (
        "bert-classifier",
        {"target_modules": ["query", "dense"], "use_dora": True, "bias": "all", "modules_to_save": ["classifier"]},
    ),
    "classifier-all-linear": ("bert-classifier", {"target_modules": "all-linear"}),
    "two-modules-of-a-head": (
        "distilbert-classifier",
        {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier", "classifier"]},
    ),
    "masked-all-linear": ("bert-mlm", {"target_modules": "all-linear", "bias": "all"}),
    "opt-narrow": ("opt-narrow", {"target_modules": "all-linear"}),
}
"""The layers are alike, so these are exported with and without ``--levels``."""
UNLIKE: dict[str, tuple[str, dict[str, Any], str]] = {
    "rank-of-a-layer": ("qwen2", {**QV, "rank_pattern": {r"layers.1.self_attn.v_proj": 2}}, "has the (shape|scale)"),
    "rank-of-the-last-layer": ("qwen2", {**QV, "rank_pattern": {r".*\.2\..*q_proj": 8}}, "has the (shape|scale)"),
    "alpha-of-a-layer": ("qwen2", {**QV, "alpha_pattern": {r"layers.2.self_attn.q_proj": 80}}, "scale"),
    "some-layers": ("qwen2", {**QV, "layers_to_transform": [0, 2]}, "layer 1 is not trained"),
    "regex-of-a-layer": ("qwen2", {"target_modules": r".*layers\.(0|1)\.self_attn\.q_proj"}, "layer 2 is not trained"),
    "regex-of-other-modules": ("qwen2", {"target_modules": r".*(\.q_proj|layers\.1\..*\.v_proj)"}, "no such tensor"),
    "bias-of-a-layer": (
        "bert-classifier",
        {"target_modules": r".*\.query|.*layer\.2\.output\.dense", "bias": "lora_only", "task_type": None},
        "no such tensor",
    ),
}
"""Layers differ, so these are exported without ``--levels`` alone."""
ACCEPTED = {name: case[:2] for name, case in (ALIKE | UNLIKE).items()}
_FAST = (
    *("dora", "bias-all", "rank-pattern", "alpha-pattern", "all-linear", "regex", "save-embedding", "some-layers"),
    *("classifier-dora-bias", "two-modules-of-a-head", "masked-all-linear"),
)
CASES = [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in ACCEPTED]


def check(model: ExportModel, levels: tuple[int, ...]) -> None:
    """Run the checks of an export that come before tracing."""
    options = ExportOptions(task_of("qwen2"), ADAPTER, [1], levels=levels)
    choose_trainables(model, ADAPTER).check(options)


@pytest.mark.parametrize("name", CASES)
def test_an_accepted_adapter_is_pefts_and_only_what_was_asked_for_is_trained(name: str, tmp_path: Path) -> None:
    kind, config = ACCEPTED[name]
    adapter = write_adapter(kind, tmp_path / "base", tmp_path / "adapter", config)
    model = build(look_at(adapter), task_of(kind), ADAPTER)
    batch = batch_for(model.task)
    expected = peft_logits(kind, tmp_path / "base", adapter, model.task, batch)
    assert (eager(model, batch) - expected).abs().max() < 1e-5
    assert model.adapter is not None
    layout = make_layout(model.peft_model, model.folder, ["B"], model.adapter.elsewhere)
    heads = ("base_model.model.classifier.", "base_model.model.pre_classifier.")
    for parameter in layout:
        assert parameter.name.endswith(".lora_B.weight") or parameter.name.startswith(heads), parameter.name
    assert any(parameter.name.endswith(".lora_B.weight") for parameter in layout)
    rows = model.adapter.rows
    assert sum(row.tensors or 0 for row in rows) == len(load_file(adapter / "adapter_model.safetensors"))
    assert sum(row.parameters or 0 for row in rows if row.fate == "trained") == layout[-1].stop
    assert {row.fate for row in rows} <= {"kept", "trained"}
    check(model, ())
    if name in ALIKE:
        check(model, (2,))


def test_what_peft_would_train_is_kept(tmp_path: Path) -> None:
    """DoRA's magnitudes, biases, saved modules and embeddings are computed with; AB trains both matrices."""
    config = {**QV, "use_dora": True, "bias": "all", "modules_to_save": ["norm", "embed_tokens"]}
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", config)
    model = build(look_at(adapter), WORDS, LoraOptions(8, 16.0, [], None, ["A", "B"], seed=0))
    assert model.adapter is not None
    fates = {row.part.rpartition("self_attn.")[2] or row.part: (row.fate, row.why) for row in model.adapter.rows}
    assert fates["q_proj.lora_A.weight"] == ("trained", "LoRA's A")
    assert fates["q_proj.lora_magnitude_vector"] == ("kept", "DoRA's magnitude, frozen at its value")
    assert fates["k_proj.bias"] == ("kept", "a bias, frozen at its value")
    norm, embedding = (f"base_model.model.model.{module}.weight" for module in ("norm", "embed_tokens"))
    assert fates[norm] == fates[embedding] == ("kept", "a saved module, frozen at its value")


def test_a_projection_before_the_layers_is_kept(tmp_path: Path) -> None:
    adapter = write_adapter("opt-narrow", tmp_path / "base", tmp_path / "adapter", {"target_modules": "all-linear"})
    model = build(look_at(adapter), WORDS, ADAPTER)
    assert model.adapter is not None
    found = {row.part: row for row in model.adapter.rows if "project_" in row.part and "lora_B" in row.part}
    before, after = (found[f"base_model.model.model.decoder.project_{side}.lora_B.weight"] for side in ("in", "out"))
    assert (before.fate, before.why) == ("kept", "before the first layer")
    assert after.fate == "trained"


@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_differ_are_refused_before_tracing(name: str, tmp_path: Path) -> None:
    """A level binds any layer to any slot of one graph, in which shapes and LoRA's scale are constants."""
    kind, config, said = UNLIKE[name]
    adapter = write_adapter(kind, tmp_path / "base", tmp_path / "adapter", config)
    model = build(look_at(adapter), task_of(kind), ADAPTER)
    with pytest.raises(ExportError, match=said) as caught:
        check(model, (2,))
    assert "leave out --levels, or " in caught.value.hint
    assert "merge_and_unload()" in caught.value.hint


EVERYTHING = {
    "target_modules": r".*\.(q_proj|v_proj|up_proj)",
    "use_rslora": True,
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {"up_proj": 3},
    "use_dora": True,
    "bias": "lora_only",
    "modules_to_save": ["norm", "embed_tokens"],
}
EXPORTED = {"everything": ("qwen2", EVERYTHING), **ACCEPTED}
SLOW_RUNS = [("everything", ()), ("everything", (1, 3)), ("masked-all-linear", ())]
LONG_RUNS = [*((name, ()) for name in ACCEPTED if name != "masked-all-linear"), *((name, (2,)) for name in ALIKE)]
RUNS = [
    *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW_RUNS),
    *(pytest.param(*run, marks=pytest.mark.long) for run in LONG_RUNS),
]


@pytest.mark.timeout(600)  # an export with levels takes a minute on two busy cores
@pytest.mark.parametrize(("name", "levels"), RUNS)
def test_predict_and_the_finished_folder_are_pefts(name: str, levels: tuple[int, ...], tmp_path: Path) -> None:
    """A whole export: predict with the initial and with a moved adapter, the finished adapter and PeftModel agree."""
    kind, config = EXPORTED[name]
    base, adapter = tmp_path / "base", write_adapter(kind, tmp_path / "base", tmp_path / "adapter", config)
    options = ExportOptions(task_of(kind), ADAPTER, [1], levels=levels)
    exported = export_bundle(look_at(adapter), options, tmp_path / "bundle")
    bundle = exported.bundle
    assert {row.fate for row in exported.adapter} == {"kept", "trained"}
    assert check_golden(bundle).gradients < 1e-4
    batch = batch_for(bundle.manifest.task)
    theta = golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(bundle.manifest.golden, seed=5))
    predictor = Engines(threads=1).make_predictor(bundle)
    finished = finished_folder(bundle, theta, tmp_path / "finished")
    for vector, folder in ((bundle.initial_adapter(), adapter), (theta, finished)):
        expected = peft_logits(kind, base, folder, bundle.manifest.task, batch).numpy()
        assert np.abs(predictor.logits(vector, batch) - expected).max() < 1e-5
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, finished))
    trained = {parameter.name for parameter in bundle.manifest.parameters}
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) == (name not in trained) for name in before)
