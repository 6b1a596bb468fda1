"""Rows that nobody can encode are left out, named and counted; the others are used, on the device and on the server."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.manifest import Task
from edge_runtime.data.config import DataConfig
from edge_runtime.data.encodings import unless_refused
from edge_runtime.data.examples import Completion, Row, read_examples, read_prompts
from edge_runtime.data.rows import load, load_rows
from edge_runtime.data.tokens import CompletionEncoder, TextEncoder
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import ConfigError, DataError
from server.evaluation import evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

LABELS = ["bad", "good"]
GOOD = b'{"text": "a good film", "label": "good"}'
LEFT_OUT = {
    "a surrogate alone": (b'{"text": "great \\ud83d", "label": "good"}', "half a character"),
    "the second surrogate alone": (b'{"text": "\\ude00 great", "label": "good"}', "half a character"),
    "a surrogate as bytes": (b'{"text": "great \xed\xa0\xbd", "label": "good"}', "half a character"),
    "the first bytes of an emoji": (b'{"text": "great \xf0\x9f\x98", "label": "good"}', "half a character"),
    "half a character as label": (b'{"text": "great", "label": "\\ud83d"}', "half a character"),
    "NUL bytes in a row": (b'{"text": "great \0\0\0", "label": "good"}', "NUL bytes"),
    "a line of NUL bytes": (bytes(512), "NUL bytes"),
    "an endless array": (b"[" * 100_000, "nests too deeply"),
    "an endless label": (b'{"text": "a", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests too deeply"),
    "an endless object in a field beside": (
        b'{"text": "a", "label": "good", "x": ' + b'{"a":' * 100_000,
        "nests too deeply",
    ),
}


def write(path: Path, lines: list[bytes], end: bytes = b"\n") -> DataConfig:
    path.write_bytes(end.join(lines) + end)
    return DataConfig(str(path))


@pytest.mark.parametrize("fault", LEFT_OUT)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_nobody_can_encode_is_left_out(tmp_path: Path, fault: str, end: bytes) -> None:
    line, why = LEFT_OUT[fault]
    found = read_examples(write(tmp_path / "a.jsonl", [GOOD, line, GOOD], end), LABELS)
    assert found.rows == [Row("a good film", 1)] * 2
    assert found.lines == [1, 3]
    assert [number for number, _ in found.skipped] == [2]
    assert why in found.skipped[0][1].what
    with pytest.raises(DataError, match="none of its 1 row can be used") as caught:
        read_examples(write(tmp_path / "a.jsonl", [line], end), LABELS)
    assert caught.value.facts == "none of its 1 row can be used, see line 1"


@pytest.mark.parametrize("value", [b"great \xf0\x9f\x98", b"great \xed\xa0\xbd", b"great \0", b'"a\ngreat \0"'])
def test_a_csv_row_that_nobody_can_encode_is_left_out(tmp_path: Path, value: bytes) -> None:
    lines = [b"text,label", b"a film,good", value + b",good", b"a film,good"]
    found = read_examples(write(tmp_path / "a.csv", lines), LABELS)
    assert found.rows == [Row("a film", 1)] * 2
    assert [number for number, _ in found.skipped] == [3]


def test_an_escaped_nul_is_a_character_like_others(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.jsonl", [b'{"text": "a\\u0000b", "label": 0}']), LABELS)
    assert found.rows == [Row("a\0b", 0)]


def test_a_completion_that_nobody_can_encode_is_left_out(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a", "completion": " b"}', b'{"prompt": "\\ud83d", "completion": " b"}']
    data = write(tmp_path / "a.jsonl", [*lines, b'{"prompt": "a", "completion": " \\ud83d"}'])
    assert read_prompts(data).rows == [Completion("a", " b")]
    assert data.path.endswith("a.jsonl")


def test_data_check_says_what_is_left_out(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [GOOD, *(line for line, _ in LEFT_OUT.values())])
    assert edge_cli.main(["data", "check", "--data", str(path), "--labels", "bad,good"]) == 0
    said = capsys.readouterr().out
    assert "1 row, and 10 rows left out" in said
    assert "all good" not in said
    assert "line 2: it has half a character" in said
    assert "and 5 more" in said
    arguments = ["data", "check", "--data", str(path), "--bundle", str(tiny_bundle.path), "--format", "json"]
    assert edge_cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert [skipped["line"] for skipped in result["skipped"]] == list(range(2, 12))
    assert result["rows"] == 1


def refusing_tokenizer(path: Path) -> Path:
    """A tokenizer that refuses every word that it does not know."""
    words = {word: index for index, word in enumerate(["a", "good", "bad", "film"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_what_the_bundles_tokenizer_refuses_is_left_out(
    tmp_path: Path, bundle_copy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    refusing_tokenizer(bundle_copy.file(bundle_copy.manifest.tokenizer_file))
    texts = ["a good film", "a strange film", "a bad film", *["a bad film"] * 100, "strange " * 1000]
    data = write(tmp_path / "a.jsonl", [json.dumps({"text": text, "label": "good"}).encode() for text in texts])
    with caplog.at_level(logging.WARNING):
        assert len(load_rows(bundle_copy, data)) == 102
    assert "2 of 104 rows are left out (lines 2, 104)" in caplog.text
    assert "strange" not in caplog.text
    found = load(bundle_copy, data)
    assert [(line, fault.what) for line, fault in found.skipped] == [
        (2, "the bundle's tokenizer refuses it"),
        (104, "the bundle's tokenizer refuses it"),
    ]
    assert list(found.rows.tokens[0]) == [0, 1, 3]
    with pytest.raises(DataError, match="none of its 1 row can be used"):
        load_rows(bundle_copy, write(tmp_path / "a.jsonl", [b'{"text": "strange", "label": 0}']))


def test_encoders_name_the_row_that_is_refused(tmp_path: Path) -> None:
    path = refusing_tokenizer(tmp_path / "tokenizer.json")
    texts = TextEncoder(path, Task("classify-head", LABELS, None, None, None, 8, 0))
    with pytest.raises(DataError, match="row 2 cannot be used: the bundle's tokenizer refuses it"):
        texts.encode(["a film", "strange"])
    with pytest.raises(DataError, match="row 1 cannot be used"):
        texts.encode(["half \ud83d"])
    with pytest.raises(DataError, match="row 1 cannot be used: the bundle's tokenizer makes no token"):
        texts.encode([" "])
    prompts = CompletionEncoder(path, Task("causal-lm", [], None, None, None, 8, 0))
    with pytest.raises(DataError, match="row 2 cannot be used"):
        prompts.encode([Completion("a", " film"), Completion("a", " strange")])
    with pytest.raises(DataError, match="row 1 cannot be used"):
        prompts.encode_prompt("strange")


def test_a_panic_of_the_tokenizer_is_a_refusal_and_an_interrupt_is_none() -> None:
    class PanicException(BaseException):
        pass

    def raising(error: BaseException) -> object:
        def encode(_text: str) -> None:
            raise error

        return encode

    for refusal in (PanicException(), TypeError(), ValueError()):
        assert unless_refused(raising(refusal), "a") is None  # type: ignore[arg-type]
    for passed in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(passed)):
            unless_refused(raising(passed), "a")  # type: ignore[arg-type]


WORDS = [
    b"text",
    b"label",
    b"good",
    b"0",
    b"sep=",
    b'"',
    b"'",
    b",",
    b";",
    b"\t",
    b"\r",
    b"\n",
    b"{",
    b"[",
    b"]",
    b":",
    b"\xef\xbb\xbf",
]


@given(
    content=st.lists(st.sampled_from(WORDS) | st.binary(max_size=4), max_size=20).map(b"".join)
    | st.text(max_size=20).map(lambda text: f"text,label\n{text},good\n".encode("utf-16", "surrogatepass")),
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "json"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "encoding": st.sampled_from(
                ["utf-8", "utf-16", "utf-16-be", "windows-1252", "ascii", "base64", "undefined", ""]
            ),
            "delimiter": st.sampled_from(["tab", ";", "'", " "]),
            "quote": st.sampled_from(['"', "|"]),
            "columns": st.lists(st.sampled_from(["text", "label", ""]), max_size=3),
            "label_names": st.dictionaries(st.text(max_size=2), st.sampled_from(LABELS), max_size=2),
        },
    ),
)
def test_whatever_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, options: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("rows") / f"a.{suffix}"
    path.write_bytes(content)
    try:
        found = read_examples(DataConfig(str(path), **options), LABELS)
    except (DataError, ConfigError):
        return
    assert len(found.rows) == len(found.lines) > 0
    for row in found.rows:
        row.text.encode()


def test_the_server_evaluates_on_the_rows_that_can_be_used(tmp_path: Path, tiny_bundle: Bundle) -> None:
    damaged = [line for line, _ in LEFT_OUT.values()]
    rows = load_rows(tiny_bundle, write(tmp_path / "eval.jsonl", [GOOD, *damaged, GOOD]))
    clean = load_rows(tiny_bundle, write(tmp_path / "clean.jsonl", [GOOD, GOOD]))
    predictor, theta = Engines(threads=1).make_predictor(tiny_bundle), tiny_bundle.initial_adapter()
    assert evaluate(predictor, theta, rows, 2) == evaluate(predictor, theta, clean, 2)
