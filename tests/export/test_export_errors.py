"""Tests that the exporter refuses wrong options with the flag's name, and leaves nothing of a failed export."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exports import HEAD, NEW_LORA, PROMPT, TEMPLATE, export
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import make_model

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.errors import StorageError
from export.bundle.options import ExportOptions
from export.errors import ExportError
from export.model.options import TaskOptions
from export.source.folder import look_at
from server.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


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
    folder = make_model(kind, tmp_path / "model")
    assert export(folder, tmp_path / "bundle", *flags) in (3, ExportError.exit_code)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("max_batch", [15, 4097])
def test_options_out_of_range_are_refused_before_anything_is_loaded(max_batch: int) -> None:
    task = TaskOptions("classify-head", ["bad", "good"], None, None, 16, None, None, None)
    with pytest.raises(ExportError, match=f"--max-batch {max_batch} is out of range"):
        ExportOptions(task, NEW_LORA, [1], max_batch=max_batch)


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
    assert "model.safetensors is cut within its header: 5 bytes" in error_of(folder)
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


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes tensors has its own exception for it."""
    from export.bundle import bundle_writer

    def write(*_arguments: Any) -> Any:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(bundle_writer, "write_golden", write)
    task = TaskOptions("classify-head", ["bad", "good"], None, None, 16, None, None, None)
    folder = look_at(make_model("bert", tmp_path / "model"))
    with pytest.raises(StorageError, match="disk full"):
        bundle_writer.export_bundle(folder, ExportOptions(task, NEW_LORA, [1]), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
