"""Tests adapters: PEFT alone loads a finished one, and the next export continues with it as it was trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from exports import HEAD, NEW_LORA, export, finished_beside_model, generic_adapter, model_dir_of
from parity import batches, finished_folder
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import LAYERS, make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.engines.choose import Engines
from edge_runtime.files.tensor_file import map_tensors
from export.errors import ExportError
from export.finished import base_for
from export.model.build import build
from export.model.lora import make_layout
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.mark.parametrize(
    ("kind", "options", "auto"),
    [
        ("bert-classifier", {}, AutoModelForSequenceClassification),
        ("llama", {"task": "classify-prompt"}, AutoModelForCausalLM),
    ],
)
def test_peft_alone_loads_a_finished_adapter(
    tiny_export: Callable[..., Bundle], kind: str, options: dict[str, Any], auto: Any, tmp_path: Path
) -> None:
    """PeftModel.from_pretrained on the usual Auto class, without Covey's code, makes the fleet's predictions."""
    bundle = tiny_export(kind, **options)
    theta = generic_adapter(bundle)
    folder = finished_folder(bundle, theta, tmp_path / "adapter")
    model = PeftModel.from_pretrained(auto.from_pretrained(model_dir_of(bundle, kind)), folder).eval()
    for batch in batches():
        input_ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        with torch.no_grad():
            logits = model(input_ids=input_ids, attention_mask=mask).logits
        if kind == "llama":
            last = logits[torch.arange(len(mask)), mask.sum(dim=1) - 1]
            logits = last[:, bundle.manifest.task.label_token_ids]
        assert np.abs(Engines(threads=1).make_predictor(bundle).logits(theta, batch) - logits.numpy()).max() < 1e-5


def test_coveys_own_head_loads_with_peft_on_its_rebuilt_module(tiny_bundle: Bundle, tmp_path: Path) -> None:
    theta = generic_adapter(tiny_bundle)
    folder = finished_folder(tiny_bundle, theta, tmp_path / "adapter")
    base = base_for(folder, model_dir_of(tiny_bundle, "bert"))
    model = PeftModel.from_pretrained(base, folder).eval()
    batch = batches()[0]
    with torch.no_grad():
        logits = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
    assert np.abs(Engines(threads=1).make_predictor(tiny_bundle).logits(theta, batch) - logits).max() < 1e-5
    summary = json.loads((folder / "covey_job.json").read_text())
    assert summary["bundle_sha256"] == tiny_bundle.sha256


def test_an_export_continues_with_the_folders_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle of a folder with a PEFT adapter starts with that adapter's A, B and head."""
    folder = make_model("bert-classifier", tmp_path / "model")
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["key"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.2)
    model.eval().save_pretrained(folder)
    capsys.readouterr()
    assert export(folder, tmp_path / "bundle", *HEAD, "--format", "json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["parity_logits"] < 1e-5
    assert len(said.err.splitlines()) == 5  # progress alone: the libraries' messages are silenced
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.manifest.lora.r, bundle.manifest.lora.targets) == (4, ["key"])
    batch = batches()[3]
    with torch.no_grad():
        expected = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).logits.numpy()
    found = Engines(threads=1).make_predictor(bundle).logits(bundle.initial_adapter(), batch)
    assert np.abs(found - expected).max() < 1e-5
    before = load_file(folder / "adapter_model.safetensors")
    assert set(before) == set(map_tensors(bundle.file(bundle.manifest.adapter_file)))


def test_an_export_continues_with_a_finished_adapter_as_it_was_trained(
    tiny_export: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Pooling and logit scale are the adapter's, and an option that contradicts them is an error."""
    bundle = tiny_export("bert", splits=(2,), train="AB", pooling="cls")
    folder = finished_beside_model(bundle, tmp_path / "model")
    open_options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
    model = build(look_at(folder), open_options, NEW_LORA)
    assert (model.rebuild["pooling"], model.rebuild["logit_scale"]) == ("cls", 3.0)
    batch = batches()[0]
    with torch.no_grad():
        logits = model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
    assert (
        np.abs(Engines(threads=1).make_predictor(bundle).logits(generic_adapter(bundle), batch) - logits).max() < 1e-5
    )
    for other in (
        TaskOptions("classify-head", ["good", "bad"], None, None, 32, None, None, None),
        TaskOptions("classify-head", ["bad", "good"], None, None, 32, "mean", None, None),
        TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, 1.0, None),
    ):
        with pytest.raises(ExportError, match="does not fit the adapter"):
            build(look_at(folder), other, NEW_LORA)


def test_adapters_that_do_not_fit_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """PEFT would leave missing tensors at random values and ignore extra ones, with a mere warning."""
    folder = finished_beside_model(tiny_bundle, tmp_path / "model")
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
    whole = load_file(folder / "adapter_model.safetensors")
    first = min(whole)

    def refusal(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(ExportError) as caught:
            build(look_at(folder), options, NEW_LORA)
        return str(caught.value)

    assert f"{first} is missing in the adapter" in refusal({n: t for n, t in whole.items() if n != first})
    assert "extra is in the adapter, but not in the model" in refusal(whole | {"extra": torch.zeros(1)})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}))
    assert "no head 'classifier'" in refusal({n: t for n, t in whole.items() if "lora_" in n})
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "is IA3, not LORA" in refusal(whole)


def test_lora_after_the_layers_belongs_to_the_back(tmp_path: Path) -> None:
    """BERT's pooler has no layer number; it comes after all layers."""
    folder = look_at(make_model("bert-classifier", tmp_path / "model"))
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
    model = build(folder, options, LoraOptions(4, 8.0, ["dense"], None, ["B"], seed=0))
    layers = {p.name: p.layer for p in make_layout(model.peft_model, folder, ["B"])}
    assert layers["base_model.model.bert.pooler.dense.lora_B.weight"] == LAYERS
    assert list(layers.values()) == sorted(layers.values())
