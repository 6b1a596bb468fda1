"""``--train-norm``: the final norm is trained, alone behind the split or with LoRA, and PEFT loads the result."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from exports import TEMPLATE, export, generic_adapter, model_dir_of
from masks import with_masks
from parity import assert_parity, batches, finished_folder
from peft import PeftModel
from peft_adapters import ADAPTER, HEAD, MASK, WORDS, write_adapter
from tiny_models import make_model
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.decode import find_decode
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.layout import front_size
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import ConfigError
from export.bundle.level_checks import trains_norm_alone
from export.bundle.options import ExportOptions
from export.errors import ExportError
from export.finished import load_finished
from export.model.build import build
from export.outputs.merged import load_merged
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch

NORM = dataclasses.replace(ADAPTER, targets=["q_proj", "v_proj"], norm=True)
QUERY = dataclasses.replace(NORM, targets=["query"])
PROMPT: dict[str, Any] = {"task": "classify-prompt", "norm": True, "splits": (1, 3)}


def norms_of(bundle: Bundle) -> dict[str, int]:
    """The trained tensors without LoRA, each with its layer."""
    return {p.name: p.layer for p in bundle.manifest.parameters if "lora_" not in p.name}


@pytest.mark.parametrize(
    "kind",
    ["qwen2", *[pytest.param(kind, marks=pytest.mark.slow) for kind in ("bert-mlm", "distilbert-mlm", "opt-tied")]],
)
def test_graphs_agree_with_what_peft_loads(tiny_export: Callable[..., Bundle], kind: str, tmp_path: Path) -> None:
    """With LoRA behind split 1, and alone behind the last layer; the merged model is the same."""
    bundle = tiny_export(kind, **PROMPT)
    theta = generic_adapter(bundle)
    finished, model_dir = finished_folder(bundle, theta, tmp_path / "adapter"), model_dir_of(bundle, kind)
    task = bundle.manifest.task
    given = [with_masks(batch, task.mask_token_id, task.pad_token_id) for batch in batches()]
    for load in (load_finished, load_merged):
        model = load(finished, model_dir)

        def eager(batch: Batch, model: Any = model) -> torch.Tensor:
            return torch.as_tensor(model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)))

        assert_parity(bundle, theta, eager, given)
    names = norms_of(bundle)
    assert names
    assert set(names.values()) == {3}
    alone = theta[front_size(bundle.manifest.parameters, 3) :]
    assert alone.size == sum(np.prod(p.shape) for p in bundle.manifest.parameters if p.name in names)


def test_peft_alone_loads_the_norm(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """Only the final norm is a saved module, none of the layers' norms, whose names end as its own does."""
    bundle = tiny_export("qwen2", **PROMPT)
    theta = generic_adapter(bundle)
    adapter = finished_folder(bundle, theta, tmp_path / "adapter")
    assert json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] == ["model.norm"]
    assert norms_of(bundle) == {"base_model.model.model.norm.weight": 3}
    base = AutoModelForCausalLM.from_pretrained(model_dir_of(bundle, "qwen2"))
    model = PeftModel.from_pretrained(base, adapter).eval()
    batch, words = batches()[0], bundle.manifest.task.label_token_ids
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    expected = logits[torch.arange(len(ids)), mask.sum(dim=1) - 1][:, words].numpy()
    assert np.abs(Engines(threads=1).make_predictor(bundle).logits(theta, batch) - expected).max() < 1e-5


@pytest.mark.slow
def test_text_is_continued_with_the_trained_norm(tiny_export: Callable[..., Bundle]) -> None:
    """The export itself compares the decode graph with PyTorch, with an adapter in which every tensor matters."""
    bundle = tiny_export("qwen2", task="causal-lm", norm=True, splits=(3,))
    assert norms_of(bundle) == {"base_model.model.model.norm.weight": 3}
    decode = find_decode(bundle.path, bundle.manifest)
    assert decode is not None
    assert "base_model.model.model.norm.weight" in {i.source for i in decode.graph.inputs if i.role == "trainable"}


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("qwen2", "model.norm"),
        ("opt-tied", "model.decoder.final_layer_norm"),
        ("bert-mlm", "cls.predictions.transform.LayerNorm"),
        ("roberta-mlm", "lm_head.layer_norm"),
        ("deberta-mlm", "cls.predictions.transform.LayerNorm"),
        ("mpnet-mlm", "lm_head.layer_norm"),
        ("distilbert-mlm", "vocab_layer_norm"),
    ],
)
def test_every_architectures_final_norm_is_found(kind: str, found: str, tmp_path: Path) -> None:
    task = MASK if kind.endswith("-mlm") else WORDS
    folder = look_at(make_model(kind, tmp_path / "model"))
    targets = {"bert": "query", "roberta": "query", "deberta": "query_proj", "mpnet": "q", "distilbert": "q_lin"}
    options = dataclasses.replace(NORM, targets=[targets.get(kind.partition("-")[0], "q_proj")])
    assert build(folder, task, options).norm == found


def test_an_adapter_with_the_norm_is_continued_only_where_it_is_asked_for(tmp_path: Path) -> None:
    config = {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}
    adapter = look_at(write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", config))
    model = build(adapter, WORDS, NORM)
    assert model.adapter is not None
    name = "base_model.model.model.norm.weight"
    assert [(row.fate, row.why) for row in model.adapter.rows if row.part == name] == [("trained", "the final norm")]
    model = build(adapter, WORDS, ADAPTER)
    assert model.adapter is not None
    why = "a saved module, frozen at its value"
    assert [(row.fate, row.why) for row in model.adapter.rows if row.part == name] == [("kept", why)]


def test_an_adapter_without_the_norm_cannot_get_it(tmp_path: Path) -> None:
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", {"target_modules": ["q_proj"]})
    with pytest.raises(ExportError, match=r"--train-norm: .* without the final norm 'model.norm'"):
        build(look_at(adapter), WORDS, NORM)


def test_what_has_no_final_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no norm between its last layer and its output embedding"):
        build(look_at(make_model("opt-narrow", tmp_path / "opt")), WORDS, NORM)
    with pytest.raises(ExportError, match="classify-head trains its head"):
        build(look_at(make_model("bert", tmp_path / "bert")), HEAD, QUERY)
    with pytest.raises(ExportError, match="the final norm of --train-norm is none"):
        ExportOptions(WORDS, NORM, [1], stack=True)


def test_every_weight_includes_the_norm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task", "causal-lm", "--train", "full", "--train-norm")
    assert export(tmp_path, tmp_path / "out", *flags) == ConfigError.exit_code
    assert "trains the final norm as every weight" in capsys.readouterr().err


PROMPT_FLAGS = ("--task", "classify-prompt", "--labels", "bad,good", *TEMPLATE, "--label-words", " terrible, great")


def made(kind: str, tmp_path: Path, *flags: str) -> tuple[list[int], bool]:
    """The splits of a bundle, and whether it trains something behind the layers."""
    model, out = tmp_path / kind, tmp_path / "bundle"
    if not model.exists():
        make_model(kind, model)
    assert export(model, out, *PROMPT_FLAGS, "--force", *flags) == 0
    manifest = open_bundle(out).manifest
    return manifest.splits, manifest.parameters[-1].layer == manifest.model.layers


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("llama", (), ([3], True)),
        pytest.param("llama", ("--no-train-norm",), ([2], False), marks=pytest.mark.slow),
        pytest.param("llama", ("--split", "1"), ([1], False), marks=pytest.mark.slow),
        pytest.param("llama", ("--split", "1", "--train-norm"), ([1], True), marks=pytest.mark.slow),
        pytest.param("llama", ("--train", "full"), ([2], True), marks=pytest.mark.slow),
        pytest.param("opt-narrow", (), ([2], False), marks=pytest.mark.slow),
    ],
)
def test_without_a_split_a_prompts_norm_is_trained_alone(
    kind: str, flags: tuple[str, ...], expected: tuple[list[int], bool], tmp_path: Path
) -> None:
    assert made(kind, tmp_path, *flags) == expected


def test_an_adapter_that_is_continued_keeps_what_it_trains(tmp_path: Path) -> None:
    adapter = look_at(write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", {"target_modules": ["q_proj"]}))
    assert not trains_norm_alone("classify-prompt", adapter)
    assert trains_norm_alone("classify-prompt", look_at(tmp_path / "base"))
    assert not trains_norm_alone("causal-lm", look_at(tmp_path / "base"))
