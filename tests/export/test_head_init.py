"""Tests a head that starts at class means, and the linear probe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from exports import HEAD, export
from tiny_models import make_model, reviews, write_rows

from edge_runtime.data.batch import pad
from export.errors import ExportError
from export.model.build import build
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at
from server.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.tasks import PooledClassifier


def test_a_head_starts_at_class_means(tmp_path: Path) -> None:
    """On rows that class means separate, the new head predicts better than chance."""
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
    """Class means fit their own rows whatever the labels, so these rows must not choose the temperature."""
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
