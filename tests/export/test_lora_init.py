"""A new adapter's A from the activations of public rows: the singular vectors of each layer's inputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import HEAD, NEW_LORA, PROMPT, TEMPLATE, export
from safetensors.torch import load_file
from tiny_models import make_model, reviews, write_rows

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.manifest import Task
from edge_runtime.errors import ConfigError, DataError
from export.errors import ExportError
from export.model.build import build
from export.model.lora import adapter_state
from export.model.lora_init import public_texts, start_from_activations
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at

TASK = TaskOptions("classify-head", ["bad", "good"], None, None, 16, "mean", 1.0, None)


def matrices(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The A and the B matrices of a bundle's start adapter."""
    state = load_file(next(path.rglob("adapter_model.safetensors")))
    return ({name: t for name, t in state.items() if f"lora_{which}" in name} for which in "AB")  # type: ignore[return-value]


def test_the_rows_of_a_are_the_top_singular_vectors_of_the_inputs(tmp_path: Path) -> None:
    """Computed apart: one layer's inputs by a hook of the test's own, and NumPy's SVD of them."""
    folder = look_at(make_model("bert", tmp_path / "model"))
    rows = reviews(12, seed=1)
    path = write_rows(rows, tmp_path / "public.jsonl")
    plain = build(folder, TASK, NEW_LORA)
    ours = build(folder, TASK, LoraOptions(4, 8.0, ["query", "value"], None, ["B"], 0, path))
    seen: list[torch.Tensor] = []
    (name, module) = next(
        (n, m) for n, m in plain.peft_model.named_modules() if n.endswith("layer.1.attention.self.query")
    )
    hook = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows:  # one at a time: nothing is padded
            ids = plain.tokenizer(row["text"], truncation=True, max_length=16)["input_ids"]
            plain.task_model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
    hook.remove()
    _, _, vectors = np.linalg.svd(torch.cat(seen).double().numpy(), full_matrices=False)
    found = adapter_state(ours.peft_model)[f"{name}.lora_A.weight"].double().numpy() * math.sqrt(3)
    for index in range(4):
        assert abs(abs(float(found[index] @ vectors[index])) - 1) < 1e-3
        assert found[index][np.abs(found[index]).argmax()] > 0
    assert np.abs(found @ found.T - np.eye(4)).max() < 1e-5
    assert all(float(t.abs().max()) == 0 for n, t in adapter_state(ours.peft_model).items() if "lora_B" in n)
    with torch.no_grad():
        batch = torch.tensor([[2, 5, 7, 3]]), torch.ones(1, 4, dtype=torch.int64)
        assert torch.equal(plain.task_model(*batch), ours.task_model(*batch))


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("bert", HEAD),
        pytest.param("llama", (*PROMPT, *TEMPLATE, "--label-words", " bad, good"), marks=pytest.mark.slow),
    ],
)
def test_the_bundle_s_start_adapter_has_it(tmp_path: Path, kind: str, flags: tuple[str, ...]) -> None:
    folder = make_model(kind, tmp_path / "model")
    path = write_rows(reviews(12, seed=1), tmp_path / "public.jsonl")
    for name, more in (("plain", ()), ("ours", ("--lora-init", "activations", str(path)))):
        assert export(folder, tmp_path / name, *flags, "--lora-r", "4", *more) == 0
    plain, ours = (matrices(tmp_path / name) for name in ("plain", "ours"))
    for (before, _), (after, b) in [(tuple(plain), tuple(ours))]:
        assert before.keys() == after.keys()
        assert all(not torch.equal(before[name], after[name]) for name in before)
        assert all(float(tensor.abs().max()) == 0 for tensor in b.values())
    assert open_bundle(tmp_path / "ours").sha256 != open_bundle(tmp_path / "plain").sha256


def test_what_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model("bert", tmp_path / "model")
    path = write_rows(reviews(12, seed=1), tmp_path / "public.jsonl")
    for flags, code, message in (
        (("--lora-init", "svd", str(path)), ConfigError.exit_code, "'svd': unknown"),
        (("--lora-init", "activations", str(path), "--train", "full"), ConfigError.exit_code, "--train full has none"),
        (("--lora-init", "activations", str(tmp_path / "none.jsonl")), ExportError.exit_code, "none.jsonl"),
        (
            ("--lora-init", "activations", str(path), "--lora-r", "999"),
            ExportError.exit_code,
            "fewer than 999 directions",
        ),
    ):
        assert export(folder, tmp_path / "bundle", *HEAD, *flags) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    assert DataError.exit_code != ExportError.exit_code


def test_conversations_and_rows_without_tokens_are_named(tmp_path: Path) -> None:
    task = Task("causal-lm", [], None, None, None, 16, 0)
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for rows in ([talk], [{"prompt": "a", "completion": " b"}, talk]):
        path = write_rows(rows, tmp_path / "public.jsonl")
        with pytest.raises(ExportError, match="has conversations"):
            public_texts(path, task)
    plain = build(look_at(make_model("bert", tmp_path / "model")), TASK, NEW_LORA)
    for texts in ([], ["never looked at"]):
        with pytest.raises(ExportError, match="no token of any row"):
            start_from_activations(plain.task_model, lambda *_, **__: {"input_ids": []}, texts, task)
