"""The tokenizer against the model: tokens without an embedding, padding, and rows that the model's positions cut."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exports import NEW_LORA, export
from tiny_gguf import write_gguf
from tiny_models import WORDS, make_model, reviews, write_rows
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edge_runtime.engines.golden import Parity
from export.bundle.bundle_writer import Exported
from export.commands.export import _result, _text
from export.errors import ExportError
from export.model.build import build
from export.model.options import LoraOptions, TaskOptions
from export.probe import linear_probe
from export.source.folder import look_at

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from export.model.build import ExportModel

LLAMA_LORA = LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0)


def built(folder: Path, kind: str = "classify-head", max_tokens: int = 16) -> ExportModel:
    """Build what an export traces."""
    looked = look_at(folder)
    labels = [] if kind == "causal-lm" else ["bad", "good"]
    options = TaskOptions(kind, labels, None, None, max_tokens, None, None, None)
    return build(looked, options, LLAMA_LORA if looked.is_decoder else NEW_LORA)


def with_tokenizer(folder: Path, change: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


CHANGES = {
    "a token": lambda t: t.add_tokens(["<ticket>"]),
    "a special token": lambda t: t.add_special_tokens({"additional_special_tokens": ["<ticket>"]}),
    "the padding": lambda t: t.add_special_tokens({"pad_token": "<ticket>"}),
    "many tokens": lambda t: t.add_tokens(["<ticket>", *(f"<more{i}>" for i in range(9))]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_tokens_that_the_model_lacks_are_refused_by_name(tmp_path: Path, kind: str, change: str) -> None:
    folder = with_tokenizer(make_model(kind, tmp_path / "model"), CHANGES[change])
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(ExportError, match=rf"vocabulary is {rows} tokens: '<ticket>' \({rows}\)") as caught:
        built(folder)
    assert "resize_token_embeddings" in caught.value.hint
    with pytest.raises(ExportError, match="'<ticket>'"):
        train = write_rows(reviews(4, 0), tmp_path / "train.jsonl")
        linear_probe(look_at(folder), ["bad", "good"], train, train, 16)


def test_words_of_a_vocabulary_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    """The tokenizer of another model: no added tokens, its own vocabulary is the larger one."""
    folder = make_model("bert", tmp_path / "model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {"café": len(content["model"]["vocab"])}
    path.write_text(json.dumps(content))
    with pytest.raises(ExportError, match=r"'café' \(53\)"):
        built(folder)


def test_the_end_of_a_completion_must_have_an_embedding(tmp_path: Path) -> None:
    folder = with_tokenizer(
        make_model("llama", tmp_path / "model"), lambda t: t.add_special_tokens({"eos_token": "<end>"})
    )
    with pytest.raises(ExportError, match="'<end>'"):
        built(folder, "causal-lm")


def test_a_special_token_that_nothing_uses_becomes_text(tmp_path: Path) -> None:
    folder = with_tokenizer(
        make_model("llama", tmp_path / "model"), lambda t: t.add_special_tokens({"unk_token": "<unk>"})
    )
    model = built(folder)
    assert "no embedding for '<unk>'" in model.notes[0]
    assert max(model.tokenizer("see <unk> here")["input_ids"]) < model.folder.vocab_size


def test_a_token_that_the_conversion_of_gguf_adds_becomes_text(tmp_path: Path) -> None:
    """Transformers gives every tokenizer of this kind an ``<|endoftext|>``, whatever the file's vocabulary is."""
    source = make_model("llama", tmp_path / "source")
    write_gguf(source, tmp_path / "model" / "model.gguf")
    model = built(tmp_path / "model")
    texts = ["a very good film", "see <|endoftext|> here"]
    plain = PreTrainedTokenizerFast.from_pretrained(source)
    assert "no embedding for '<|endoftext|>'" in model.notes[0]
    assert [model.tokenizer(text)["input_ids"] for text in texts] == [plain(text)["input_ids"] for text in texts]
    model.tokenizer.save_pretrained(tmp_path / "saved")
    assert "endoftext" not in (tmp_path / "saved" / "tokenizer.json").read_text()


def test_rows_that_end_sooner_than_asked_for_are_said(tmp_path: Path, tiny_bundle: Bundle) -> None:
    model = built(make_model("roberta", tmp_path / "model"), max_tokens=128)
    assert model.notes == [
        "--max-tokens 128: the model's positions end sooner, longer rows are cut to 63 tokens",
    ]
    args = argparse.Namespace(out=Path("b"), ptd=None)
    exported = Exported(tiny_bundle, Parity(0.0, 0.0, 0.0), model.notes, [])
    assert "\n  note: --max-tokens 128" in _text(args, exported)
    assert _result(args, exported, 1.0)["notes"] == model.notes
    assert _result(args, exported, 1.0)["max_tokens"] == tiny_bundle.manifest.task.max_tokens


def test_padding_that_differs_is_said_and_changes_nothing(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 7}))
    model = built(folder)
    assert "pads with token 0, the model's configuration says 7" in model.notes[0]
    ids, mask = torch.tensor([[2, 9, 10, 3]]), torch.tensor([[1, 1, 1, 1]])
    padded = [torch.cat([ids, torch.tensor([[pad, pad]])], dim=1) for pad in (0, 7)]
    longer = torch.tensor([[1, 1, 1, 1, 0, 0]])
    results = [model.task_model(ids, mask)] + [model.task_model(row, longer) for row in padded]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_padding_outside_of_the_vocabulary_is_refused_before_the_model_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model("llama", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 401}))
    flags = ("--task", "classify-head", "--labels", "bad,good", "--split", "1")
    assert export(folder, tmp_path / "bundle", *flags) == ExportError.exit_code
    assert "pad_token_id is 401, and the vocabulary has 401 tokens" in capsys.readouterr().err


def test_a_tokenizer_far_smaller_than_the_model_is_said(tmp_path: Path) -> None:
    folder = make_model("bert", tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {word: index for word, index in content["model"]["vocab"].items() if word not in WORDS[5:]}
    content["model"]["vocab"] = vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "look whether the tokenizer's file is cut" in built(folder).notes[0]
