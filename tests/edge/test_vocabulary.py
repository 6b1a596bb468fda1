"""Tokens that a bundle's model does not know, and special tokens written out in private texts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import reviews, write_rows
from tokenizers import AddedToken, Tokenizer

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.folder import Bundle, open_bundle
from edge_runtime.bundle.manifest import MANIFEST_FILE, FileEntry
from edge_runtime.bundle.manifest_file import encode_manifest
from edge_runtime.data.examples import Completion, DataConfig
from edge_runtime.data.rows import load, load_rows
from edge_runtime.data.tokens import CompletionEncoder, TextEncoder
from edge_runtime.data.vocabulary import check_vocabulary, special_tokens_in
from edge_runtime.errors import BundleError, DataError, TrainingError
from edge_runtime.files.hashing import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

TINY_VOCABULARY = 53


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer_file)))


def widen(bundle: Bundle, *tokens: str, special: bool = False) -> Bundle:
    """Give a bundle's tokenizer tokens beyond the vocabulary, as a bundle from elsewhere may have them."""
    path, tokenizer = bundle.file(bundle.manifest.tokenizer_file), tokenizer_of(bundle)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    tokenizer.save(str(path))
    name = bundle.manifest.tokenizer_file
    entry = FileEntry(name, file_sha256(path), path.stat().st_size)
    files = [entry if old.path == name else old for old in bundle.manifest.files]
    bundle.file(MANIFEST_FILE).write_bytes(encode_manifest(msgspec.structs.replace(bundle.manifest, files=files)))
    return open_bundle(bundle.path)


def test_the_manifest_says_how_many_tokens_the_model_knows(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.vocab_size == TINY_VOCABULARY
    check_vocabulary(tokenizer_of(tiny_bundle), tiny_bundle.manifest.task, tiny_bundle.manifest.vocab_size)


def test_an_older_bundle_says_nothing_and_is_read(bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = [
        msgspec.structs.replace(graph, inputs=[msgspec.structs.replace(i, rows=None) for i in graph.inputs])
        for graph in bundle_copy.manifest.graphs
    ]
    manifest = msgspec.structs.replace(bundle_copy.manifest, graphs=graphs)
    bundle_copy.file(MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    assert open_bundle(bundle_copy.path).manifest.vocab_size is None
    assert edge_cli.main(["bundle", "verify", str(bundle_copy.path)]) == 0
    bundle = widen(open_bundle(bundle_copy.path), "<ticket>")
    capsys.readouterr()
    assert edge_cli.main(["predict", "--bundle", str(bundle.path), "see <ticket>"]) == TrainingError.exit_code
    said = capsys.readouterr().err
    assert "a row has a token that the model does not know" in said
    assert "memory" not in said


@pytest.mark.parametrize("special", [False, True])
def test_a_text_with_a_token_that_the_model_lacks_is_named_before_the_engine(
    bundle_copy: Bundle, tmp_path: Path, special: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = widen(bundle_copy, "<ticket>", special=special)
    rows = [*reviews(4, 0), {"text": "see <ticket> and weep", "label": "bad"}, *reviews(2, 1)]
    path = write_rows(rows, tmp_path / "data.jsonl")
    loaded = load(bundle, DataConfig(str(path)))
    ((line, fault),) = loaded.skipped
    assert (line, len(loaded.rows)) == (5, 6)
    assert re.match(r"'<ticket>' is token 53 .* the model knows 53 tokens", fault.what)
    assert edge_cli.main(["predict", "--bundle", str(bundle.path), "see <ticket>"]) == DataError.exit_code
    assert "'<ticket>' is token 53" in capsys.readouterr().err
    assert edge_cli.main(["data", "check", "--data", str(path), "--bundle", str(bundle.path)]) == 0
    assert "line 5: '<ticket>' is token 53" in capsys.readouterr().out
    write_rows(rows[4:5], path)
    with pytest.raises(DataError, match="'<ticket>' is token 53") as caught:
        load_rows(bundle, DataConfig(str(path)))
    assert "memory" not in str(caught.value)
    assert "weep" not in caught.value.public
    assert "ticket" not in caught.value.public


def test_verify_sees_a_tokenizer_that_is_wider_than_the_model(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edge_cli.main(["bundle", "verify", str(bundle_copy.path)]) == 0
    assert "53 tokens, the model knows 53" in capsys.readouterr().out
    bundle = widen(bundle_copy, *(f"<t{index}>" for index in range(9)))
    assert edge_cli.main(["bundle", "verify", str(bundle.path)]) == BundleError.exit_code
    assert "tokenizer has 9 tokens that the model, which knows 53, has no embedding for: '<t0>' (53)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "change", [{"pad_token_id": 53}, {"eos_token_id": 99}, {"mask_token_id": 60}, {"label_token_ids": [3, 53]}]
)
def test_verify_sees_a_task_that_is_wider_than_the_model(tiny_bundle: Bundle, change: dict[str, int]) -> None:
    task = msgspec.structs.replace(tiny_bundle.manifest.task, **change)
    with pytest.raises(BundleError, match=f"the task's {next(iter(change))}"):
        check_vocabulary(tokenizer_of(tiny_bundle), task, tiny_bundle.manifest.vocab_size)


def test_completions_and_prompts_are_checked_too(bundle_copy: Bundle) -> None:
    bundle = widen(bundle_copy, "<ticket>")
    encoder = CompletionEncoder(
        bundle.file(bundle.manifest.tokenizer_file), bundle.manifest.task, bundle.manifest.vocab_size
    )
    with pytest.raises(DataError, match="row 2 cannot be used: '<ticket>'"):
        encoder.encode([Completion("the film", " was good"), Completion("the film", " was <ticket>")])
    with pytest.raises(DataError, match="'<ticket>'"):
        encoder.encode_prompt("the <ticket>")


def test_a_text_without_tokens_is_named(bundle_copy: Bundle) -> None:
    path = bundle_copy.file(bundle_copy.manifest.tokenizer_file)
    content = json.loads(path.read_text())
    content["post_processor"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="row 2 cannot be used: the bundle's tokenizer makes no token of it"):
        TextEncoder(path, bundle_copy.manifest.task).encode(["good", " ", "\n \t"])


def test_special_tokens_in_texts_are_counted_by_row(tiny_bundle: Bundle) -> None:
    texts = ["good", "one [SEP] two [SEP]", "[CLS] and [SEP]", "an unknownword", "[sep]", "(MASK)"]
    assert special_tokens_in(texts, tokenizer_of(tiny_bundle)) == {"[CLS]": 1, "[SEP]": 2}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from(["good", "[SEP]", "[PAD]", "é", " ", "[", "SEP]", "\n"])), max_size=6))
def test_no_text_makes_a_token_that_the_model_lacks(tiny_bundle: Bundle, texts: list[list[str]]) -> None:
    """Literals of special tokens are tokens like others: never an index beyond the embedding."""
    rows = ["".join(pieces) or "x" for pieces in texts]
    bundle = tiny_bundle
    encoder = TextEncoder(bundle.file(bundle.manifest.tokenizer_file), bundle.manifest.task, TINY_VOCABULARY)
    assert all(0 <= token < TINY_VOCABULARY for ids in encoder.encode(rows) for token in ids)
    counted = special_tokens_in(rows, tokenizer_of(bundle))
    assert counted.get("[SEP]", 0) == sum("[SEP]" in row for row in rows)


def test_data_check_says_which_special_tokens_stand_in_the_rows(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*reviews(4, 0), {"text": "good [SEP] bad", "label": "bad"}, {"text": "[SEP] it [PAD]", "label": "good"}]
    path = write_rows(rows, tmp_path / "data.jsonl")
    arguments = ["data", "check", "--data", str(path), "--bundle", str(tiny_bundle.path)]
    assert edge_cli.main([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["special_tokens"] == {"[PAD]": 1, "[SEP]": 2}
    assert edge_cli.main(arguments) == 0
    assert "special token [SEP] stands in 2 rows: the model reads it as that token" in capsys.readouterr().out
