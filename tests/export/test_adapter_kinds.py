"""Adapters of every kind that PEFT writes: computed as PEFT does, trained where asked for, or refused with a remedy."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from exports import PROMPT, export
from parity import batches, finished_folder
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft_adapters import ADAPTER, WORDS, peft_logits, task_of, write_adapter
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from export.bundle.bundle_writer import export_bundle
from export.bundle.options import ExportOptions
from export.bundle.trainables import choose_trainables
from export.errors import AdapterError, ExportError
from export.model.build import build
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.data.batch import Batch
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


def batch_for(model_task: Any) -> Batch:
    rows = [row[: mask.sum()].tolist() for row, mask in zip(batches()[0].input_ids, batches()[0].attention_mask, strict=True)]
    if model_task.mask_token_id is not None:
        for index, row in enumerate(rows):
            row[index % len(row)] = model_task.mask_token_id
    return pad(rows, [0] * len(rows), model_task.pad_token_id)


def eager(model: ExportModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))


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
    layout = choose_trainables(model, ADAPTER).layout(None)  # type: ignore[arg-type] LoRA reads no traced program
    heads = ("base_model.model.classifier.", "base_model.model.pre_classifier.")
    for parameter in layout:
        assert parameter.name.endswith(".lora_B.weight") or parameter.name.startswith(heads), parameter.name
    assert any(parameter.name.endswith(".lora_B.weight") for parameter in layout)
    assert model.adapter is not None
    rows = model.adapter.rows
    assert sum(row.tensors or 0 for row in rows) == len(load_file(adapter / "adapter_model.safetensors"))
    assert sum(row.parameters or 0 for row in rows if row.fate == "trained") == layout[-1].stop
    assert {row.fate for row in rows} <= {"kept", "trained"}
    check(model, ())
    if name in ALIKE:
        check(model, (2,))


def test_what_peft_would_train_is_kept(tmp_path: Path) -> None:
    """DoRA's magnitudes, biases, saved modules and embeddings are computed with; both matrices are trained on demand."""
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
RUNS = [("everything", ())]
SLOW_RUNS = [
    ("everything", (1, 3)),
    *((name, ()) for name in ACCEPTED),
    *((name, (2,)) for name in ALIKE),
]


@pytest.mark.timeout(600)  # an export with levels takes a minute on two busy cores
@pytest.mark.parametrize(("name", "levels"), [*RUNS, *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW_RUNS)])
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
