"""Completions on the device: files, tokens, cuts and batches. Nothing of a row is cut to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from edge_runtime.bundle.manifest import Task
from edge_runtime.data.batch import IGNORED, pad_completions
from edge_runtime.data.examples import Completion, DataConfig, read_prompts
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = 1, 2


@pytest.fixture(scope="module", params=["bare", "begin", "begin-end"])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level tokens, with nothing around a text (as Qwen), a token before it (OPT, Llama), or one behind it too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": BEGIN, "</s>": END} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary | {"Ġa": 300, "Ġb": 301}, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if request.param != "bare":
        single = "<s> $A </s>" if request.param == "begin-end" else "<s> $A"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", BEGIN), ("</s>", END)]
        )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def task(max_tokens: int, eos_token_id: int | None = END) -> Task:
    return Task("causal-lm", [], None, None, None, max_tokens, 0, eos_token_id=eos_token_id)


def encode(path: Path, prompt: str, completion: str, *options: Any) -> tuple[list[int], list[int]]:
    """Return the tokens before the first one to predict, and those to predict."""
    (row,) = CompletionEncoder(path, task(*options)).encode([Completion(prompt, completion)])
    return row.ids[: row.start], row.ids[row.start :]


def test_what_is_predicted(tokenizer_file: Path) -> None:
    """The completion's tokens and the end of the text; a token of both belongs to the completion."""
    begin = [BEGIN] if encode(tokenizer_file, "x", "y", 9)[0][0] == BEGIN else []
    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    assert encode(tokenizer_file, "xy a", " b", 20) == (begin + ids("xy a"), [301, END])
    assert encode(tokenizer_file, "xy ", "b", 20) == (begin + ids("xy"), [301, END])
    assert encode(tokenizer_file, "xy a", " b", 20, None) == (begin + ids("xy a"), [301])
    assert encode(tokenizer_file, "é", " ü b", 20) == (begin + ids("é"), [*ids(" ü b"), END])


@given(
    prompt=st.text(alphabet="ab é漢", max_size=30),
    completion=st.text(alphabet="ab é漢", min_size=1, max_size=30).filter(str.strip),
    max_tokens=st.integers(4, 40),
)
def test_nothing_is_cut_to_nothing(tokenizer_file: Path, prompt: str, completion: str, max_tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    whole = list(tokenizer.encode(prompt + completion, add_special_tokens=False).ids)
    context, predicted = encode(tokenizer_file, prompt, completion, max_tokens)
    assert context
    assert predicted
    text = [token for token in context + predicted if token not in (BEGIN, END)]
    assert len(context + predicted) <= max_tokens
    if len(whole) + 2 <= max_tokens:
        assert text == whole
        assert predicted[-1] == END
    else:
        room = max_tokens - (context[0] == BEGIN)
        at = [i for i in range(len(whole)) if whole[i : i + len(text)] == text]
        assert at  # one piece of the row, its prompt's end and its completion's beginning
        assert len(predicted) >= room // 2 or predicted[-1] == END or not prompt


def test_a_row_without_a_token_to_predict(tokenizer_file: Path) -> None:
    """Nothing before the only token: there is nothing to predict it from."""
    encoder = CompletionEncoder(tokenizer_file, task(9, None))
    if encoder.encode_prompt("a")[0] == BEGIN:
        assert encoder.encode([Completion("", "a")])[0].start == 1
    else:
        with pytest.raises(DataError, match="row 1"):
            encoder.encode([Completion("", "a")])


def test_prompts_leave_room_for_a_token(tokenizer_file: Path) -> None:
    encoder = CompletionEncoder(tokenizer_file, task(6))
    ids = encoder.encode_prompt("aa bb aa bb")
    assert len(ids) == 5
    assert ids[-1] != END
    assert encoder.decode(encoder.encode_prompt(" a b")) == " a b"


def test_a_batch_in_chunks() -> None:
    batch = pad_completions([[5, 6, 7, 8], [9, 10]], [2, 1], pad_token_id=0, chunk_tokens=2)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch.labels.tolist() == [[7, 8], [10, IGNORED]]
    assert batch.positions.tolist() == [[1, 2], [4, 0]]
    assert batch.by_row(np.array([[1.5, 2.0], [4.0, 99.0]])).tolist() == [3.5, 4.0]
    assert {a.dtype for a in (batch.labels, batch.positions)} == {np.dtype(np.int64)}


@given(st.lists(st.tuples(st.integers(2, 20), st.integers(0, 30)), min_size=1, max_size=6), st.integers(1, 20))
def test_chunks_hold_every_position_once(shapes: list[tuple[int, int]], chunk_tokens: int) -> None:
    rows = [list(range(1, length + 1)) for length, _ in shapes]
    starts = [1 + start % (length - 1) for length, start in shapes]
    batch = pad_completions(rows, starts, 0, chunk_tokens)
    assert batch.positions.shape == batch.labels.shape
    assert batch.positions.shape[1] <= chunk_tokens
    real = batch.labels != IGNORED
    assert (~real).sum() < max(batch.positions.shape)
    assert (
        len(set(batch.positions[real].tolist()))
        == real.sum()
        == sum(len(r) - s for r, s in zip(rows, starts, strict=True))
    )
    flat = batch.input_ids.ravel()
    assert (flat[batch.positions[real] + 1] == batch.labels[real]).all()
    assert batch.by_row(np.ones(batch.labels.shape)).tolist() == [len(r) - s for r, s in zip(rows, starts, strict=True)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_and_csv_give_the_same_completions(tmp_path: Path) -> None:
    json_file = write(tmp_path / "a.jsonl", '{"q": "two,", "a": " three"}\n\n{"q": "", "a": " one"}\n')
    csv_file = write(tmp_path / "a.csv", 'a,q\n" three","two,"\n one,\n')
    expected = [Completion("two,", " three"), Completion("", " one")]
    for path in (json_file, csv_file):
        assert read_prompts(DataConfig(str(path), prompt_field="q", completion_field="a")).rows == expected


def test_wrong_completions_are_named_by_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"prompt": "x", "completion": "y"}\n{"prompt": "x"}\n{"prompt": 3, "completion": "y"}\n'
        '{"prompt": "x", "completion": " "}\nnot json\n',
    )
    with pytest.raises(DataError) as caught:
        read_prompts(DataConfig(str(path)))
    said = str(caught.value)
    assert "4 of 5 rows are wrong" in said
    for line in ("line 2: no 'completion'", "line 3: 'prompt' is not text but int", "line 4: 'completion' is empty"):
        assert line in said
    assert "line 5: not JSON" in said
    assert "'prompt' and 'completion'" in said
