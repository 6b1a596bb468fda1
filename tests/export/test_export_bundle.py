"""Export: parity on every architecture, folders in PEFT's own format, nothing left by what failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from parity import assert_parity, batches, finished_folder
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import LAYERS, make_model, reviews, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.bundle.layout import front_size, views
from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases
from edge_runtime.errors import StorageError
from edge_runtime.files.tensor_file import map_tensors
from export.errors import ExportError
from export.finished import base_for, load_finished
from export.model.build import build
from export.model.lora import DEFAULT_TARGETS, make_layout
from export.model.options import LoraOptions, TaskOptions
from export.model.tasks import PooledClassifier
from export.source.folder import look_at
from server.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector

CASES = [
    ("bert", {"splits": (1, 2, 3)}),
    ("bert", {"splits": (2,), "train": "AB", "pooling": "cls"}),
    ("bert-classifier", {}),
    ("roberta", {"layers": [2]}),
    ("roberta-classifier", {}),
    ("llama", {"pooling": "last"}),
    ("llama", {"task": "classify-prompt"}),
    ("llama-tied", {"task": "classify-prompt", "train": "AB"}),
]
IDS = [f"{kind}-{'-'.join(map(str, options.values())) or 'own head'}" for kind, options in CASES]


def generic_adapter(bundle: Bundle) -> FloatVector:
    """An adapter in which every trainable tensor matters."""
    golden = bundle.manifest.golden
    import msgspec

    return golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(golden, seed=77, scale=0.02))


def model_dir_of(bundle: Bundle, kind: str) -> Path:
    return bundle.path.parents[1] / "models" / kind


@pytest.mark.parametrize(("kind", "options"), CASES, ids=IDS)
def test_graphs_agree_with_pytorch(
    tiny_export: Callable[..., Bundle], kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """predict and front∘back of every split against PyTorch eager, through the finished PEFT folder: 1e-5."""
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
    """A head that starts at zero shrinks every difference: the golden adapter must be large enough to tell."""
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
    """No paths, and no order of a set: the same export is the same bytes anywhere."""
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


def test_no_graph_makes_a_vocabulary_of_logits(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="classify-prompt")
    assert [output.shape for output in bundle.manifest.graph("predict").outputs] == [["batch", 2]]
    assert max(path.stat().st_size for path in bundle.file("graphs").iterdir()) < 300_000


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
    """PeftModel.from_pretrained on the usual Auto class, without a line of Covey, gives the fleet's predictions."""
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


def test_a_head_of_ours_loads_with_peft_on_its_rebuilt_module(tiny_bundle: Bundle, tmp_path: Path) -> None:
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


def export(model_dir: Path, out: Path, *flags: str) -> int:
    arguments = ["export", str(model_dir), "--out", str(out), "--max-tokens", "16", *flags]
    return main(arguments)


HEAD = ("--task", "classify-head", "--labels", "bad,good", "--split", "1")
PROMPT = ("--task", "classify-prompt", "--labels", "bad,good", "--split", "1")
TEMPLATE = ("--template", "{text} It was")


def test_an_adapter_is_taken_up_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a PEFT adapter in it: its A, B and head are the bundle's start."""
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
    assert len(said.err.splitlines()) == 5  # progress, and nothing of what the libraries have to say
    bundle = open_bundle(tmp_path / "bundle")
    assert (bundle.manifest.lora.r, bundle.manifest.lora.targets) == (4, ["key"])
    batch = batches()[3]
    with torch.no_grad():
        expected = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).logits.numpy()
    found = Engines(threads=1).make_predictor(bundle).logits(bundle.initial_adapter(), batch)
    assert np.abs(found - expected).max() < 1e-5
    before = load_file(folder / "adapter_model.safetensors")
    assert set(before) == set(map_tensors(bundle.file(bundle.manifest.adapter_file)))


NEW_LORA = LoraOptions(4, 8.0, ["query", "value"], None, ["B"], seed=0)


def finished_beside_model(bundle: Bundle, folder: Path) -> Path:
    """A tiny BERT's folder with a finished adapter of ours in it."""
    make_model("bert", folder)
    for path in finished_folder(bundle, generic_adapter(bundle), folder / "finished").iterdir():
        path.rename(folder / path.name)
    return folder


def test_a_finished_adapter_is_gone_on_with_as_it_was_trained(
    tiny_export: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Pooling and logit scale are the adapter's, unless an option contradicts it: that is an error."""
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
    """PEFT would leave what is missing at random, ignore what is left over, and only warn."""
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


def test_lora_behind_the_layers_belongs_to_the_back(tmp_path: Path) -> None:
    """BERT's pooler has no layer number; it stands behind all layers."""
    folder = look_at(make_model("bert-classifier", tmp_path / "model"))
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
    model = build(folder, options, LoraOptions(4, 8.0, ["dense"], None, ["B"], seed=0))
    layers = {p.name: p.layer for p in make_layout(model.peft_model, folder, ["B"])}
    assert layers["base_model.model.bert.pooler.dense.lora_B.weight"] == LAYERS
    assert list(layers.values()) == sorted(layers.values())


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("bert", (*HEAD[:-1], "0"), "--split 0 is out of range: the model has 3 layers"),
        ("bert", (*HEAD[:-1], "4"), "--split 4 is out of range"),
        ("bert", (*HEAD[:-1], "x"), "not a list of numbers"),
        ("bert", ("--task", "classify-head", "--labels", "bad", "--split", "1"), "need two or more"),
        ("bert", (*HEAD, "--label-words", " bad, good"), "classify-head has none"),
        ("bert", (*HEAD, "--logit-scale", "0"), "must be above 0"),
        ("bert", (*HEAD, "--lora-targets", "q_proj"), "no linear module 'q_proj'"),
        ("bert", (*HEAD, "--lora-layers", "7"), "layers are 0 to 2"),
        ("bert", (*PROMPT, *TEMPLATE, "--label-words", "bad,good"), "bert needs {mask} once"),
        ("llama", (*PROMPT, "--template", "{text} {mask}", "--label-words", " bad, good"), "has no {mask}"),
        ("bert", (*PROMPT, "--template", "{text} {mask}", "--label-words", "bad,good"), "weights in .* lack cls"),
        ("llama", (*PROMPT, *TEMPLATE), "0 words for 2 labels"),
        ("llama", (*PROMPT, *TEMPLATE, "--label-words", " great"), "1 words for 2 labels"),
        ("llama", (*PROMPT, *TEMPLATE, "--label-words", " terrible, greatest"), r"' greatest' is \d tokens"),
        ("llama", (*PROMPT, *TEMPLATE, "--label-words", " great, great"), "not all different"),
        ("llama", (*PROMPT, "--template", "It was", "--label-words", " bad, good"), "with {text} once"),
        ("llama", (*PROMPT[:-1], "3", *TEMPLATE, "--label-words", " bad, good"), "no trainable parameters"),
        (
            "llama",
            (*PROMPT, *TEMPLATE, "--label-words", " bad, good", "--lora-targets", "lm_head,q_proj"),
            "lm_head.lora_B.weight would be trained",
        ),
        ("bert-classifier", ("--task", "classify-head", "--labels", "a,b,c", "--split", "1"), "has 2 labels"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(
    tmp_path: Path, kind: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    folder = make_model(kind, tmp_path / "model")
    assert export(folder, tmp_path / "bundle", *flags) in (3, ExportError.exit_code)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "bundle").exists()


def test_folders_that_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(folder: Path) -> str:
        assert export(folder, tmp_path / "bundle", *HEAD) == ExportError.exit_code
        return capsys.readouterr().err

    assert "is not a folder" in error_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error_of(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "vit"}')
    assert "architecture 'vit' is not supported" in error_of(tmp_path / "empty")
    folder = make_model("bert", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"short")
    assert "cannot load the model" in error_of(folder)
    folder = make_model("bert", tmp_path / "quantised")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    assert f"{name} is I8, not a float" in error_of(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"lack {name}" in error_of(folder)
    folder = make_model("bert", tmp_path / "wordless")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "there is no tokenizer" in error_of(folder)
    folder = make_model("bert", tmp_path / "adapter")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/somewhere"}')
    assert "not a local folder" in error_of(folder)


def test_an_unknown_task_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "x", "--task", "translate", "--labels", "a,b", "--split", "1", "--out", "y"])
    assert caught.value.code == 2


def test_a_bundle_is_not_overwritten_unasked(
    bundle_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model("bert", tmp_path / "model")
    out = bundle_copy.path
    assert export(folder, out, *HEAD) == ExportError.exit_code
    assert "--force to replace" in capsys.readouterr().err
    assert open_bundle(out).sha256 == bundle_copy.sha256
    assert export(folder, out, *HEAD, "--force", "--seed", "5") == 0
    assert open_bundle(out).sha256 != bundle_copy.sha256
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert export(folder, tmp_path / "mine", *HEAD, "--force") == ExportError.exit_code
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_an_export_that_fails_late_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that do not agree with PyTorch never become a bundle."""
    from export.bundle import golden

    monkeypatch.setattr(golden, "GOLDEN_TOLERANCE", 0.0)
    folder = make_model("roberta", tmp_path / "model")
    assert export(folder, tmp_path / "bundle", *HEAD) == 5
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes tensors has an exception of its own for it."""
    import export.bundle.bundle_writer as writer

    def write(*arguments: Any, **_options: Any) -> Any:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "_write", write)
    with pytest.raises(StorageError, match="disk full"):
        writer.export_bundle(
            look_at(make_model("bert", tmp_path / "model")),
            TaskOptions("classify-head", ["bad", "good"], None, None, 16, None, None, None),
            NEW_LORA,
            [1],
            tmp_path / "bundle",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_repeats_exactly(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """From another folder too."""
    import shutil

    from export.bundle.bundle_writer import export_bundle

    folder = look_at(shutil.copytree(model_dir_of(tiny_bundle, "bert"), tmp_path / "elsewhere" / "bert"))
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, 3.0, None)
    lora = LoraOptions(4, 8.0, DEFAULT_TARGETS["bert"], None, ["B"], seed=1)
    again = export_bundle(folder, options, lora, [1, 2], tmp_path / "bundle").bundle
    assert again.sha256 == tiny_bundle.sha256


def test_a_head_starts_at_class_means(tmp_path: Path) -> None:
    """On rows that class means can tell apart, the head's start is right; its temperature fits them."""
    folder = make_model("bert", tmp_path / "model")
    rows = write_rows(reviews(60, seed=1), tmp_path / "rows.jsonl")
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, "mean", 3.0, rows)
    model = build(look_at(folder), options, LoraOptions(4, 8.0, ["query"], None, ["B"], 0))
    base: PooledClassifier = model.peft_model.get_base_model()
    head = base.classifier.original_module
    assert head.weight.abs().max() > 0
    texts = [json.loads(line) for line in rows.read_text().splitlines()]
    encoded = [model.tokenizer(row["text"])["input_ids"] for row in texts]
    batch = pad(encoded, [("bad", "good").index(row["label"]) for row in texts], 0)
    with torch.no_grad():
        logits = model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
        loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)))
    assert loss < 0.69


def test_a_head_from_rows_without_a_pattern_is_not_sure(tmp_path: Path) -> None:
    """Class means fit the rows that they are made of, whatever their labels: those must not set the temperature."""
    rows = reviews(24, seed=1)
    for index, row in enumerate(rows):
        row["label"] = ("bad", "good")[index // 2 % 2]
    path = write_rows(rows, tmp_path / "rows.jsonl")
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, "mean", 3.0, path)
    model = build(
        look_at(make_model("bert", tmp_path / "model")), options, LoraOptions(4, 8.0, ["query"], None, ["B"], 0)
    )
    tokens = [model.tokenizer(row["text"])["input_ids"] for row in rows]
    batch = pad(tokens, [0] * len(rows), 0)
    with torch.no_grad():
        logits = model.task_model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
    assert float((logits[:, 1] - logits[:, 0]).abs().max()) < 0.5


def test_head_init_needs_every_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model("bert", tmp_path / "model")
    rows = write_rows([row for row in reviews(10, 0) if row["label"] == "good"], tmp_path / "rows.jsonl")
    assert export(folder, tmp_path / "bundle", *HEAD, "--head-init", str(rows)) == ExportError.exit_code
    assert "no example of bad" in capsys.readouterr().err


def test_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model("bert", tmp_path / "model")
    train = write_rows(reviews(200, 1), tmp_path / "train.jsonl")
    test = write_rows(reviews(60, 2), tmp_path / "test.jsonl")
    arguments = ["probe", str(folder), "--labels", "bad,good", "--train", str(train), "--test", str(test)]
    assert main([*arguments, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] > 0.6
    assert result["train_rows"] == 200
