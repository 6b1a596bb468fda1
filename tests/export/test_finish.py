"""``covey finish``: what it writes is loaded by the other program alone, and gives what the fleet's predictor gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime
import pytest
import torch
from exports import generic_adapter, model_dir_of
from masks import with_masks
from parity import batches, finished_folder
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.batch import Batch
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.errors import StorageError
from edge_runtime.values import FloatVector
from export.errors import ExportError
from server.cli import main

PROMPT = {"task": "classify-prompt"}
CASES: list[tuple[str, dict[str, str]]] = [
    ("bert", {}),
    ("bert-classifier", {}),
    ("bert-mlm", PROMPT),
    ("llama", PROMPT),
]


class Finished:
    """A finished adapter of a tiny model, and the command that writes it in another form."""

    def __init__(self, bundle: Bundle, kind: str, theta: FloatVector, root: Path) -> None:
        self.bundle, self.theta, self.root = bundle, theta, root
        self.model_dir = model_dir_of(bundle, kind)
        self.adapter = finished_folder(bundle, theta, root / "finished")
        self.predictor = Engines(threads=1).make_predictor(bundle)

    def to(self, form: str, out: str = "out", extra: tuple[str, ...] = ()) -> int:
        given = ["finish", str(self.adapter), "--model", str(self.model_dir), "--to", form]
        return main([*given, "--out", str(self.root / out), *extra])

    def assert_same(self, logits: Callable[[Batch], np.ndarray[Any, Any]]) -> None:
        """Compare logits with those of the predictor, on rows of very different lengths."""
        task = self.bundle.manifest.task
        spread = 0.0
        for plain in batches():
            batch = with_masks(plain, task.mask_token_id, task.pad_token_id)
            expected = self.predictor.logits(self.theta, batch)
            spread = max(spread, float(np.ptp(expected)))
            assert np.abs(logits(batch) - expected).max() < 2e-5 * max(1.0, float(np.abs(expected).max()))
        assert spread > 1e-2


@pytest.fixture
def finished(tiny_export: Callable[..., Bundle], tmp_path: Path) -> Callable[..., Finished]:
    def make(kind: str, **options: Any) -> Finished:
        bundle = tiny_export(kind, **options)
        full = options.get("train") == "full"
        golden = bundle.manifest.golden
        theta = golden_adapter(bundle.initial_adapter(), golden) if full else generic_adapter(bundle)
        return Finished(bundle, kind, theta, tmp_path)

    return make


def by_transformers(folder: Path, kind: str, task: Any) -> Callable[[Batch], np.ndarray[Any, Any]]:
    """Return the task's logits by transformers and the files of a merged folder alone."""
    auto: Any = {"bert": AutoModel, "bert-classifier": AutoModelForSequenceClassification}.get(kind)
    auto = auto or (AutoModelForMaskedLM if kind == "bert-mlm" else AutoModelForCausalLM)
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert all("pooler" in name for name in report["missing_keys"])
    stored, described = load_file(folder / "model.safetensors"), AutoConfig.from_pretrained(folder).covey_task

    def logits(batch: Batch) -> np.ndarray[Any, Any]:
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        with torch.no_grad():
            out = model.eval()(input_ids=ids, attention_mask=mask)
        if kind == "bert-classifier":
            return np.asarray(out.logits)
        if kind == "bert":
            weights = mask.unsqueeze(-1).float()
            assert described["pooling"] == "mean"
            pooled = (out.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
            head = torch.nn.functional.linear(pooled, stored["classifier.weight"], stored["classifier.bias"])
            return np.asarray(described["logit_scale"] * head)
        last = mask.sum(dim=1) - 1
        position = last if task.mask_token_id is None else (ids == task.mask_token_id).nonzero()[:, 1]
        return np.asarray(out.logits[torch.arange(len(ids)), position][:, described["label_token_ids"]])

    return logits


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_transformers_alone_loads_a_merged_model(
    finished: Callable[..., Finished], kind: str, options: dict[str, str]
) -> None:
    case = finished(kind, **options)
    assert case.to("merged") == 0
    out = case.root / "out"
    assert not any("lora" in name for name in load_file(out / "model.safetensors"))
    case.assert_same(by_transformers(out, kind, case.bundle.manifest.task))
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(case.model_dir).get_vocab()
    if not options:
        assert AutoConfig.from_pretrained(out).id2label == dict(enumerate(case.bundle.manifest.task.labels))


def test_a_model_whose_every_weight_was_trained_is_merged_already(finished: Callable[..., Finished]) -> None:
    case = finished("bert-mlm", **PROMPT, train="full")
    assert case.to("merged") == 0
    case.assert_same(by_transformers(case.root / "out", "bert-mlm", case.bundle.manifest.task))
    for form in ("peft", "gguf-lora"):
        assert case.to(form, form) == ExportError.exit_code
        assert not (case.root / form).exists()


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_onnx_runtime_alone_runs_the_graph(
    finished: Callable[..., Finished], kind: str, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    case = finished(kind, **options)
    assert case.to("onnx") == 0
    assert "ONNX Runtime's logits are within" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(case.root / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["input_ids", "attention_mask"]

    def logits(batch: Batch) -> np.ndarray[Any, Any]:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return np.asarray(session.run(["logits"], given)[0])

    case.assert_same(logits)
    assert json.loads((case.root / "out" / "covey_task.json").read_text())["labels"] == case.bundle.manifest.task.labels


@pytest.mark.parametrize(("kind", "options"), [("bert", {}), pytest.param("llama", PROMPT, marks=pytest.mark.slow)])
def test_executorch_alone_runs_the_program(
    finished: Callable[..., Finished], kind: str, options: dict[str, str]
) -> None:
    runtime = pytest.importorskip("executorch.runtime").Runtime.get()
    case = finished(kind, **options)
    assert case.to("pte", extra=("--max-tokens", "32")) == 0
    method = runtime.load_program(case.root / "out" / "model.pte").load_method("forward")

    def logits(batch: Batch) -> np.ndarray[Any, Any]:
        given = [torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)]
        return np.asarray(method.execute(given)[0])

    case.assert_same(logits)
    assert case.to("pte", "long", ("--max-tokens", "1000000")) == ExportError.exit_code


def test_peft_alone_loads_a_peft_folder(finished: Callable[..., Finished]) -> None:
    case = finished("llama", **PROMPT)
    assert case.to("peft") == 0
    out, task = case.root / "out", case.bundle.manifest.task
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "covey_task.json",
    ]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.model_dir), out).eval()

    def logits(batch: Batch) -> np.ndarray[Any, Any]:
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask).logits
        return np.asarray(found[torch.arange(len(ids)), mask.sum(dim=1) - 1][:, task.label_token_ids])

    case.assert_same(logits)


def test_a_gguf_adapter_has_the_matrices_of_the_fleet(finished: Callable[..., Finished]) -> None:
    case = finished("llama", **PROMPT)
    assert case.to("gguf-lora") == 0
    reader = gguf.GGUFReader(case.root / "out" / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.architecture"], fields["general.type"], fields["adapter.type"]) == (
        "llama",
        "adapter",
        "lora",
    )
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.model_dir), case.adapter)
    config = model.config
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v"}
    compared = set()
    for name, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        layer, kind = name.split(".")[-3], name.split(".")[-1]
        stem = f"blk.{layer}.{names[kind]}.weight"
        a, b = tensors[f"{stem}.lora_a"], tensors[f"{stem}.lora_b"]
        delta = b @ a * (fields["adapter.lora.alpha"] / len(a))  # as llama.cpp scales it
        if kind[0] in heads:
            # What transformers does with the rows of a Llama's GGUF that it loads.
            rows = delta.reshape(heads[kind[0]], len(delta) // heads[kind[0]] // 2, 2, -1)
            delta = rows.swapaxes(2, 1).reshape(delta.shape)
        expected = module.get_delta_weight("default").detach().numpy()
        assert np.abs(expected).max() > 1e-4
        assert np.abs(delta - expected).max() < 1e-6
        compared |= {f"{stem}.lora_a", f"{stem}.lora_b"}
    assert compared == set(tensors)


@pytest.mark.parametrize("kind", ["bert", "bert-classifier"])
def test_a_gguf_adapter_of_another_architecture_is_refused(finished: Callable[..., Finished], kind: str) -> None:
    case = finished(kind)
    assert case.to("gguf-lora") == ExportError.exit_code
    assert not (case.root / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_is_left(
    finished: Callable[..., Finished], capsys: pytest.CaptureFixture[str]
) -> None:
    case = finished("bert")
    (case.root / "out").mkdir()
    (case.root / "out" / "mine").touch()
    for form in ("peft", "merged", "onnx"):
        assert case.to(form) == StorageError.exit_code
    assert "results are never overwritten" in capsys.readouterr().err
    assert [path.name for path in (case.root / "out").iterdir()] == ["mine"]
    (case.adapter / "adapter_model.safetensors").write_bytes(b"cut")
    for form in ("peft", "merged", "onnx"):
        assert case.to(form, "other") == ExportError.exit_code
    assert sorted(path.name for path in case.root.iterdir()) == ["finished", "out"]
