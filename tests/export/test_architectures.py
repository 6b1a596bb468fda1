"""Tests front, back and predict of every architecture against PyTorch eager, at shapes that were not traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import torch
from parity import assert_parity
from peft import PeftModel
from tiny_models import LAYERS, make_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from edge_runtime.bundle.layout import front_size
from edge_runtime.data.batch import pad
from edge_runtime.data.tokens import TextEncoder
from edge_runtime.engines.golden import golden_adapter
from export.finished import load_finished
from export.source.architectures import ARCHITECTURES, longest_row
from export.source.folder import look_at
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch

HEAD, PROMPT = "classify-head", "classify-prompt"
FAST = [("deberta", HEAD), ("qwen2-sliding", PROMPT)]
SLOW = [
    *[(kind, HEAD) for kind in ("distilbert", "mpnet")],
    *[(kind, PROMPT) for kind in ("roberta-mlm", "opt", "qwen2-tied")],
    *[(f"{kind}-classifier", HEAD) for kind in ("deberta", "distilbert", "mpnet")],
    *[(f"{kind}-mlm", PROMPT) for kind in ("bert", "deberta", "distilbert", "mpnet")],
    *[(kind, HEAD) for kind in ("opt", "qwen2", "qwen3")],
    *[(kind, PROMPT) for kind in ("llama-wide", "opt-narrow", "qwen2", "qwen3", "qwen3-sliding", "qwen3-tied")],
]
CASES = [*FAST, *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]]
SPLITS = (1, 2)
POSITIONS = 64
"""Positions of the tiny models: the longest rows reach DeBERTa's and MPNet's logarithmic buckets."""


def batches(bundle: Bundle) -> list[Batch]:
    """Return batches: rows of very different lengths, the shortest and the longest, both sides of each border.

    The borders are those of the tiny models' sliding windows and buckets; rows stand alone and beside longer ones.
    """
    rng = np.random.Generator(np.random.PCG64(3))
    task = bundle.manifest.task
    least = 1 if task.mask_token_id is None else 2
    made = []
    borders = [[length] for length in (4, 5, 6, 8, 9, 10)] + [[9, 8, least], [task.max_tokens, 10, 9, 8, 6, 5, least]]
    for lengths in ([4, 11, 2], [7], [task.max_tokens, 2, 33, 5], [2, 2], [least], *borders):
        rows = [rng.integers(4, 50, size=n).tolist() for n in lengths]
        for index, row in enumerate(rows):
            if task.mask_token_id is not None:
                row[(7 * index + 1) % len(row)] = task.mask_token_id
        made.append(pad(rows, rng.integers(0, 2, len(rows)).tolist(), task.pad_token_id))
    return made


def reference(bundle: Bundle, kind: str, adapter: Path) -> Callable[[Batch], torch.Tensor]:
    """Return logits by PyTorch eager; for prompts, by PEFT on the usual Auto class, with the whole vocabulary."""
    model_dir, task = bundle.path.parents[1] / "models" / kind, bundle.manifest.task
    if task.kind == HEAD:
        head = load_finished(adapter, model_dir)
        return lambda batch: head(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
    auto = AutoModelForCausalLM if task.mask_token_id is None else AutoModelForMaskedLM
    model = PeftModel.from_pretrained(auto.from_pretrained(model_dir), adapter).eval()

    def words(batch: Batch) -> torch.Tensor:
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        logits = model(input_ids=ids, attention_mask=mask).logits
        position = mask.sum(dim=1) - 1
        if task.mask_token_id is not None:
            position = (ids == task.mask_token_id).nonzero()[:, 1]
        return torch.as_tensor(logits[torch.arange(len(ids)), position][:, task.label_token_ids])

    return words


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_graphs_agree_with_pytorch(tiny_export: Callable[..., Bundle], kind: str, task: str, tmp_path: Path) -> None:
    bundle = tiny_export(kind, task=task, splits=SPLITS, max_tokens=POSITIONS)
    manifest = bundle.manifest
    golden = msgspec.structs.replace(manifest.golden, seed=77)
    theta = golden_adapter(bundle.initial_adapter(), golden)
    write_finished(bundle, theta, tmp_path / "adapter", {})
    eager = reference(bundle, kind, tmp_path / "adapter")
    assert_parity(bundle, theta, eager, batches(bundle))
    assert manifest.splits == list(SPLITS)
    assert manifest.model.layers == LAYERS
    assert manifest.vocab_size == look_at(bundle.path.parents[1] / "models" / kind).vocab_size
    for split in SPLITS:
        front = {i.source for i in manifest.graph("front", split).inputs if i.role == "trainable"}
        assert front == {p.name for p in manifest.parameters if p.stop <= front_size(manifest.parameters, split)}


def test_only_the_masks_logits_are_made(tiny_export: Callable[..., Bundle]) -> None:
    """Only Gather reads the output embedding, at the label words' rows; no value has the vocabulary's size."""
    import onnx

    bundle = tiny_export("roberta-mlm", task=PROMPT, splits=SPLITS, max_tokens=POSITIONS)
    graph = onnx.load(bundle.file("graphs/back_1.onnx")).graph
    vocabulary = {i.name for i in bundle.manifest.graph("back", 1).inputs if i.shape and i.shape[0] == 53}
    readers = {node.op_type for node in graph.node if vocabulary & set(node.input)}
    assert readers == {"Gather"}


@pytest.mark.parametrize("text", ["good film " * 50, "good [MASK] film [MASK] " * 30, "short", "[MASK]"])
def test_no_row_loses_its_mask_or_has_another(tiny_export: Callable[..., Bundle], text: str) -> None:
    bundle = tiny_export("roberta-mlm", task=PROMPT, splits=SPLITS, max_tokens=POSITIONS)
    manifest = bundle.manifest
    for max_tokens in (7, 12, POSITIONS):
        task = msgspec.structs.replace(manifest.task, max_tokens=max_tokens)
        (ids,) = TextEncoder(bundle.file(manifest.tokenizer_file), task).encode([text])
        assert len(ids) <= max_tokens
        assert ids.count(int(manifest.task.mask_token_id or -1)) == 1
        assert ids[-2:] == [manifest.task.mask_token_id, 3]


@pytest.mark.parametrize(
    ("kind", "longest"), [("bert", 64), ("roberta", 63), ("deberta", 64), ("mpnet", 62), ("opt", 64), ("qwen3", 64)]
)
def test_longest_rows(kind: str, longest: int, tmp_path: Path) -> None:
    """The longest row uses every position of the model; one token more would read past its table."""
    folder = look_at(make_model(kind, tmp_path / kind))
    assert longest_row(folder.config) == longest


def test_every_architecture_is_tested() -> None:
    tested = {case[0].partition("-")[0] for case in (*FAST, *SLOW)} | {"bert"}
    assert tested == {"deberta" if name == "deberta-v2" else name for name in ARCHITECTURES}
