"""What ``covey finish`` writes as a PEFT or merged folder is a model for ``covey export``, as it was when it ended."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from exports import generic_adapter, model_dir_of
from masks import with_masks
from parity import batches, finished_folder
from peft import AutoPeftModelForCausalLM

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.engines.choose import Engines
from export.errors import ExportError
from server.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

HEAD = ["--task", "classify-head", "--labels", "bad,good", "--logit-scale", "3.0"]
PROMPT = ["--task", "classify-prompt", "--labels", "bad,good"]
CASES = [
    ("llama", "classify-prompt", [*PROMPT, "--template", "{text} It was", "--label-words", " terrible, great"]),
    ("bert-mlm", "classify-prompt", [*PROMPT, "--template", "{text} It was {mask}", "--label-words", "terrible,great"]),
    ("bert", "classify-head", HEAD),
    ("bert-classifier", "classify-head", HEAD),
]


# In a merged folder, a head of Covey's own is beside the encoder, which is what is exported: see docs/finish.md.
FORMS = [(*case, form) for case in CASES for form in ("peft", "merged") if (case[0], form) != ("bert", "merged")]
FAST = (("bert", "peft"), ("llama", "merged"))


@pytest.mark.parametrize(
    ("kind", "task", "options", "form"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[3]}", marks=[] if (case[0], case[3]) in FAST else pytest.mark.slow)
        for case in FORMS
    ],
)
def test_the_next_bundle_starts_where_training_ended(  # wide: a case, and pytest's fixtures
    tiny_export: Callable[..., Bundle], tmp_path: Path, kind: str, task: str, options: list[str], form: str
) -> None:
    bundle = tiny_export(kind, task=task)
    theta = generic_adapter(bundle)
    finished = finished_folder(bundle, theta, tmp_path / "finished")
    written, model_dir = tmp_path / form, model_dir_of(bundle, kind)
    assert main(["finish", str(finished), "--model", str(model_dir), "--to", form, "--out", str(written)]) == 0
    export = ["export", str(written), *options, "--split", "1", "--max-tokens", "32"]
    assert main([*export, "--out", str(tmp_path / "again")]) == 0
    again = open_bundle(tmp_path / "again")
    first, second = (Engines(threads=1).make_predictor(one) for one in (bundle, again))
    for plain in batches():
        batch = with_masks(plain, bundle.manifest.task.mask_token_id, bundle.manifest.task.pad_token_id)
        expected = first.logits(theta, batch)
        assert np.abs(expected - first.logits(bundle.initial_adapter(), batch)).max() > 1e-3
        found = second.logits(again.initial_adapter(), batch)
        assert np.abs(found - expected).max() < 2e-5 * max(1.0, float(np.abs(expected).max()))


def test_a_peft_folder_names_its_base(
    tiny_export: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT's Auto class loads it as it is; where the base model is gone, the export says so."""
    bundle = tiny_export("llama", task="classify-prompt")
    shutil.copytree(model_dir_of(bundle, "llama"), tmp_path / "model")
    finished = finished_folder(bundle, generic_adapter(bundle), tmp_path / "finished")
    given = ["finish", str(finished), "--model", str(tmp_path / "model"), "--to", "peft"]
    assert main([*given, "--out", str(tmp_path / "peft")]) == 0
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    assert any("lora" in name for name, _ in model.named_parameters())
    shutil.rmtree(tmp_path / "model")
    export = ["export", str(tmp_path / "peft"), "--task", "causal-lm", "--split", "1", "--out", str(tmp_path / "out")]
    assert main(export) == ExportError.exit_code
    assert "put the base model's files into the adapter's folder" in capsys.readouterr().err
