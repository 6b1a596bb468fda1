"""Every weight trained: the finished Hugging Face folder, loaded by transformers alone, gives what predict gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from exports import model_dir_of
from masks import with_masks
from parity import batches, finished_folder
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.errors import BundleError
from export.finished import load_finished
from export.model.build import build
from export.model.full import save_description
from export.model.options import TaskOptions
from export.source.architectures import ARCHITECTURES
from export.source.folder import look_at
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import TaskKind
    from edge_runtime.data.batch import Batch

HEAD: TaskKind = "classify-head"
PROMPT: TaskKind = "classify-prompt"
FAST = [("bert-mlm", PROMPT)]
SLOW = [
    ("llama-tied", PROMPT),
    *[(f"{kind}-mlm", PROMPT) for kind in ("roberta", "deberta", "distilbert", "mpnet")],
    *[(f"{kind}-classifier", HEAD) for kind in ("bert", "roberta", "deberta", "distilbert", "mpnet")],
    *[
        (kind, HEAD)
        for kind in ("bert", "roberta", "deberta", "distilbert", "mpnet", "opt-tied", "qwen2", "qwen3", "llama")
    ],
    *[(kind, PROMPT) for kind in ("opt-tied", "opt-narrow", "qwen2-tied", "qwen3-tied", "qwen2")],
]
CASES = [*FAST, *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]]
DECODERS = {name for name, architecture in ARCHITECTURES.items() if architecture.is_decoder}


def reloaded(finished: Path, kind: str, task: Any) -> Callable[[Batch], torch.Tensor]:
    """Return the task's logits by transformers' own classes and the folder's files alone, without Covey's code."""
    decoder = kind.partition("-")[0] in DECODERS
    if task.kind == PROMPT:
        auto: Any = AutoModelForCausalLM if decoder else AutoModelForMaskedLM
    else:
        auto = AutoModelForSequenceClassification if kind.endswith("-classifier") else AutoModel
    model, report = auto.from_pretrained(finished, output_loading_info=True)
    model.eval()
    # A bare encoder's pooler is new: Covey's head does without it.
    assert all("pooler" in name for name in report["missing_keys"])
    stored = load_file(finished / "model.safetensors")

    def logits(batch: Batch) -> torch.Tensor:
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        out = model(input_ids=ids, attention_mask=mask)
        rows, last = torch.arange(len(ids)), mask.sum(dim=1) - 1
        if task.kind == PROMPT:
            position = last if task.mask_token_id is None else (ids == task.mask_token_id).nonzero()[:, 1]
            return torch.as_tensor(out.logits[rows, position][:, task.label_token_ids])
        if kind.endswith("-classifier"):
            return torch.as_tensor(out.logits)
        hidden = out.last_hidden_state
        weights = mask.unsqueeze(-1).float()
        pooled = hidden[rows, last] if decoder else (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        head = torch.nn.functional.linear(pooled, stored["classifier.weight"], stored["classifier.bias"])
        return 3.0 * head  # the logit scale of tiny exports

    return logits


@pytest.mark.timeout(600)  # it exports; on two busy cores that takes minutes
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_the_finished_folder_reloads_as_what_predict_is(
    tiny_export: Callable[..., Bundle], kind: str, task: str, tmp_path: Path
) -> None:
    """Tied weights that were untied, shared biases, prefixes of wrappers: nothing starts anew at a reload."""
    bundle = tiny_export(kind, task=task, train="full")
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    # A bias that a reload forgets is seen only where it isn't zero.
    for parameter in bundle.manifest.parameters:
        if parameter.name.endswith("bias"):
            theta[parameter.offset : parameter.stop] += np.linspace(-0.5, 0.5, parameter.size, dtype=np.float32)
    finished = finished_folder(bundle, theta, tmp_path / "finished")
    manifest_task = bundle.manifest.task
    eager = reloaded(finished, kind, manifest_task)
    ours = load_finished(finished, model_dir_of(bundle, kind))
    predictor = Engines(threads=1).make_predictor(bundle)
    for plain in batches():
        batch = with_masks(plain, manifest_task.mask_token_id, manifest_task.pad_token_id)
        with torch.no_grad():
            expected = eager(batch).numpy()
            again = ours(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
        tolerance = 1e-5 * max(1.0, float(np.abs(expected).max()))
        assert np.abs(predictor.logits(theta, batch) - expected).max() < tolerance
        assert np.abs(again - expected).max() < tolerance
    check_config(finished, model_dir_of(bundle, kind), manifest_task)


def check_config(finished: Path, model_dir: Path, task: Any) -> None:
    """Compare config.json with the folder that was exported: it differs where the finished model does."""
    before, after = AutoConfig.from_pretrained(model_dir), AutoConfig.from_pretrained(finished)
    stored = load_file(finished / "model.safetensors")
    assert str(after.dtype) == "torch.float32"
    assert after._name_or_path in ("", str(finished))
    assert getattr(after, "use_cache", None) == getattr(before, "use_cache", None)
    if task.kind == HEAD:
        assert after.id2label == dict(enumerate(task.labels))
        assert after.label2id == {label: index for index, label in enumerate(task.labels)}
        assert after.num_labels == len(task.labels)
    decoders = [name for name in stored if name.endswith(("lm_head.weight", "decoder.weight", "projector.weight"))]
    if task.kind == PROMPT:
        assert decoders
        assert not after.tie_word_embeddings


def test_the_class_and_the_type_of_the_numbers_are_the_finished_models(tmp_path: Path) -> None:
    """A masked language model in bfloat16 that becomes a classifier is an encoder in float32 afterwards."""
    folder = make_model("bert-mlm", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({n: t.to(torch.bfloat16) for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "id2label": {"0": "x", "1": "y"}}))
    found = look_at(folder)
    model = build(found, TaskOptions(HEAD, ["bad", "good", "so so"], None, None, 32, "mean", None, None), None)
    (tmp_path / "bundle" / "adapter").mkdir(parents=True)
    save_description(model.peft_model, found.config, model.task.labels, tmp_path / "bundle")
    described = json.loads((tmp_path / "bundle" / "adapter" / "config.json").read_text())
    assert (described["architectures"], described["dtype"]) == (["BertModel"], "float32")
    assert described["id2label"] == {"0": "bad", "1": "good", "2": "so so"}
    assert described["use_cache"] == config["use_cache"]
    names = json.loads((tmp_path / "bundle" / "adapter" / "covey_names.json").read_text())
    assert names["encoder.embeddings.word_embeddings.weight"] == ["embeddings.word_embeddings.weight"]
    assert "classifier.weight" not in names


def test_a_finished_model_can_be_exported_again(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """The next export finds all weights, so that it starts where the first one ended."""
    bundle = tiny_export("bert-mlm", task=PROMPT, train="full")
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    finished = finished_folder(bundle, theta, tmp_path / "finished")
    words = TaskOptions(PROMPT, ["bad", "good"], "{text} It was {mask}", ["terrible", "great"], 32, None, None, None)
    model = build(look_at(finished), words, None)
    batch = with_masks(batches()[0], bundle.manifest.task.mask_token_id, 0)
    with torch.no_grad():
        logits = model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
    assert np.abs(Engines(threads=1).make_predictor(bundle).logits(theta, batch) - logits).max() < 1e-5


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"a": 1}', b"\x00\xff"])
def test_a_damaged_file_of_names_is_an_error_of_the_bundle(
    tiny_export: Callable[..., Bundle], tmp_path: Path, content: bytes
) -> None:
    bundle = tiny_export("bert-mlm", task=PROMPT, train="full")
    shutil.copytree(bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "adapter" / "covey_names.json").write_bytes(content)
    damaged = dataclasses.replace(bundle, path=tmp_path / "bundle")
    with pytest.raises(BundleError, match="export the bundle again"):
        write_finished(damaged, bundle.initial_adapter(), tmp_path / "finished", {})
    assert not (tmp_path / "finished").exists()
