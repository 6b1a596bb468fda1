"""Adapters that are refused: in seconds, with a table, and with the call that merges them, which is true."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exports import PROMPT, export
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft_adapters import ADAPTER, WORDS, batch_for, eager, peft_logits, task_of, write_adapter
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from export.errors import AdapterError, ExportError
from export.model.build import build
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path


QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}


def refusal(adapter: Path, kind: str = "qwen2") -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        build(look_at(adapter), task_of(kind), ADAPTER)
    table = caught.value.details["adapter"]
    assert isinstance(table, list)
    assert any(row["fate"] == "refused" for row in table)
    return caught.value


def run_hint(error: ExportError, adapter: Path) -> None:
    """Run the Python that a hint gives, as a user would."""
    code = re.search(r"in Python: (.*); then export MERGED", error.hint)
    assert code, error.hint
    exec(code[1].replace("'ADAPTER'", repr(str(adapter))), {})  # noqa: S102 the hint is what is tested


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        LoHaConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"),
        VeraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj"], r=4, trainable_token_indices=[4, 5], task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights="pissa", task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights="olora", task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj", "lm_head"], r=4, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=[], target_parameters=["q_proj.weight"], r=4, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_a_refused_adapter_can_be_merged_by_its_hint(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint's own call makes a folder that exports, and that computes what PEFT computes with the adapter."""
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", config)
    error = refusal(adapter)
    monkeypatch.chdir(tmp_path)
    run_hint(error, adapter)
    merged = build(look_at(tmp_path / "MERGED"), WORDS, LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0))
    batch = batch_for(merged.task)
    expected = peft_logits("qwen2", tmp_path / "base", adapter, merged.task, batch)
    assert (eager(merged, batch) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
    ids=["prefix", "prompt"],
)
def test_an_adapter_that_cannot_be_merged_says_so(config: Any, tmp_path: Path) -> None:
    make_model("qwen2", tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    error = refusal(tmp_path / "adapter")
    assert f"is {config.peft_type.value}, not LORA" in error.what
    assert "cannot be merged" in error.hint
    assert "merge_and_unload" not in error.hint


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("layer_replication", [[0, 2], [1, 3]], "without layer_replication"),
        ("alora_invocation_tokens", [4, 5], "without alora_invocation_tokens"),
        ("target_parameters", ["mlp.experts"], "merge_and_unload"),
        ("init_lora_weights", "corda", "merge_and_unload"),
        ("init_lora_weights", "pissa_niter_16", "merge_and_unload"),
        ("ensure_weight_tying", True, "merge_and_unload"),
        ("use_qalora", True, "merge_and_unload"),
        ("use_something_newer", True, "merge_and_unload"),
        ("newer_options", {"rank": 3}, "merge_and_unload"),
    ],
)
def test_a_field_that_is_not_computed_is_refused_by_its_name(
    field: str, value: Any, remedy: str, tmp_path: Path
) -> None:
    """PEFT ignores the fields of a newer version; then it computes something else than what was trained."""
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", QV)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    error = refusal(adapter)
    assert field in error.what
    assert remedy in error.hint


def test_an_empty_field_of_a_newer_version_is_no_matter(tmp_path: Path) -> None:
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", QV)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"newer": None, "other": False, "third": {}}))
    assert build(look_at(adapter), WORDS, ADAPTER).adapter is not None


@pytest.mark.parametrize("kind", ["llama", "qwen2-tied"])
def test_an_enlarged_vocabulary_is_refused_before_tracing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter of a resized model holds whole embeddings; merged as the hint says, it exports."""
    base = make_model(kind, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 5)
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **QV))
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    capsys.readouterr()
    flags = ("--label-words", " bad, good", "--template", "{text} it was", "--format", "json")
    assert export(tmp_path / "adapter", tmp_path / "bundle", *PROMPT, *flags) == 10
    said = capsys.readouterr()
    assert "tracing" not in said.err
    told = json.loads(said.out)
    rows = model.config.vocab_size
    assert f"[{rows}, 32] in the adapter, but [{rows - 5}, 32] in the model: the vocabulary" in told["error"]
    refused = {row["part"]: row for row in told["adapter"] if row["fate"] == "refused"}
    assert "base_model.model.model.embed_tokens.weight" in refused
    assert f"resize_token_embeddings({rows})" in told["hint"]
    monkeypatch.chdir(tmp_path)
    run_hint(ExportError(told["error"], told["hint"]), tmp_path / "adapter")
    merged = build(look_at(tmp_path / "MERGED"), WORDS, LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0))
    batch = batch_for(merged.task)
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    with torch.no_grad():
        logits = wrapped.eval()(input_ids=ids, attention_mask=mask).logits[torch.arange(len(ids)), mask.sum(dim=1) - 1]
    assert (eager(merged, batch) - logits[:, merged.task.label_token_ids]).abs().max() < 1e-5


def test_embeddings_that_are_the_models_own_are_left_out(tmp_path: Path) -> None:
    """``save_embedding_layers=True`` without a new token saves what the model has anyhow; a changed one is refused."""
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", QV, save_embedding_layers=True)
    model = build(look_at(adapter), WORDS, ADAPTER)
    assert model.adapter is not None
    assert {row.part for row in model.adapter.rows if row.why == "equal to the model's"} == {
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight",
    }
    stored = load_file(adapter / "adapter_model.safetensors")
    stored["base_model.model.lm_head.weight"][3, 3] += 1
    save_file(stored, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "lm_head.weight is a changed weight of the model" in refusal(adapter).what


def test_a_shape_is_named_with_both_sides(tmp_path: Path) -> None:
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", QV)
    stored = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file(stored | {name: torch.zeros(32, 2)}, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert refusal(adapter).what == f"{name} is [32, 2] in the adapter, but [32, 4] in the model"


def test_lora_on_a_tied_output_embedding_is_not_to_be_merged(tmp_path: Path) -> None:
    """Merged, it would change the input embedding too, and the model would compute something else."""
    config = {"target_modules": ["q_proj", "lm_head"]}
    error = refusal(write_adapter("qwen2-tied", tmp_path / "base", tmp_path / "adapter", config))
    assert "train an adapter without lm_head" in error.hint


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifiers_adapter_on_a_plain_encoder_is_merged_first(
    labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual PEFT recipe: the head lies in the adapter, and the model has none."""
    base = make_model("roberta-mlm", tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    task = TaskOptions("classify-head", ["bad", "good", "so so"][:labels], None, None, 32, None, None, None)
    with pytest.raises(AdapterError, match="in the adapter, but not in the model") as caught:
        build(look_at(tmp_path / "adapter"), task, ADAPTER)
    monkeypatch.chdir(tmp_path)
    run_hint(caught.value, tmp_path / "adapter")
    merged = build(look_at(tmp_path / "MERGED"), task, LoraOptions(4, 8.0, ["query"], None, ["B"], seed=0))
    batch = batch_for(merged.task)
    with torch.no_grad():
        logits = wrapped.eval()(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).logits
    assert (eager(merged, batch) - logits).abs().max() < 1e-5


def test_the_hint_for_an_adapter_beside_its_model_is_true_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads an adapter beside a model by itself: merged as it lies there, it would count twice."""
    base = make_model("qwen2", tmp_path / "base")
    config = LoHaConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM")
    adapter = write_adapter("qwen2", base, tmp_path / "adapter", config)
    batch = batch_for(build(look_at(base), WORDS, LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0)).task)
    for path in adapter.glob("adapter_*"):
        path.rename(base / path.name)
    error = refusal(base)
    assert error.hint.startswith("move the adapter_* files into a folder of their own, ADAPTER, then merge")
    for path in base.glob("adapter_*"):
        path.rename(adapter / path.name)
    monkeypatch.chdir(tmp_path)
    run_hint(error, adapter)
    merged = build(look_at(tmp_path / "MERGED"), WORDS, LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0))
    assert (eager(merged, batch) - peft_logits("qwen2", base, adapter, merged.task, batch)).abs().max() < 1e-5


def test_the_table_is_printed_for_a_refusal_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "adapter", config)
    flags = ("--label-words", " bad, good", "--template", "{text} it was")
    assert export(adapter, tmp_path / "bundle", *PROMPT, *flags) == 10
    said = capsys.readouterr().err
    assert re.search(r"^peft_type +- +- +refused +is IA3, not LORA$", said, re.MULTILINE)
    assert "tracing" not in said


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 100_000, b'{"peft_type": 3}', b'{"peft_type": "LORA", "r": "four"}'],
    ids=["empty", "list", "null", "deep", "number", "text"],
)
def test_a_damaged_configuration_is_an_error_of_the_export(content: bytes, tmp_path: Path) -> None:
    adapter = write_adapter("qwen2", tmp_path / "base", tmp_path / "base", QV)
    (adapter / "adapter_config.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"the adapter in|adapter_config\.json is empty"):
        build(look_at(adapter), WORDS, ADAPTER)
