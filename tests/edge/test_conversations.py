"""Rows of messages: what of a conversation is learned, how it is cut, and what is wrong with a row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from chats import INSTRUCTIONS, STYLES, letters, template_of_style
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge_runtime import cli
from edge_runtime.bundle.manifest import Task
from edge_runtime.data.answers import Rendered, render_answers
from edge_runtime.data.chat import ChatTemplate, Message
from edge_runtime.data.config import DataConfig
from edge_runtime.data.conversations import Dialogue
from edge_runtime.data.cut import kept_tokens
from edge_runtime.data.examples import Completion, read_prompts
from edge_runtime.data.problems import Fault
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = st.text(alphabet="ab é漢>n\n", min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Return questions and answers by turns, perhaps with a system's message first; the last one is an answer."""
    start = [Message("system", draw(CONTENT))] if draw(st.booleans()) else []
    pairs = draw(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4))
    turns = [[Message("user", asked), Message("assistant", told)] for asked, told in pairs]
    return [*start, *(message for turn in turns for message in turn)]


def dialogue_of(rendered: Rendered | Fault, messages: list[Message]) -> Dialogue:
    assert isinstance(rendered, Rendered)
    return Dialogue(tuple(messages), rendered.text, tuple(rendered.answers), rendered.as_context)


@pytest.fixture(scope="module", params=["bare", "begins"])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer, without and with a token that it puts before a text."""
    return letters(tmp_path_factory.mktemp("letters") / "tokenizer.json", begins=request.param == "begins")


def task(max_tokens: int) -> Task:
    return Task("causal-lm", [], None, None, None, max_tokens, 0, eos_token_id=2)


@pytest.mark.parametrize("style", STYLES)
@given(messages=conversations())
def test_all_answers_are_found_in_the_text(style: str, messages: list[Message]) -> None:
    """Each from the words that ask for it to the end of its turn, and no character more."""
    template, pieces = template_of_style(style), STYLES[style][1](messages)
    found = render_answers(template, messages)
    assert isinstance(found, Rendered)
    whole = "".join(text for text, _ in pieces)
    assert template.render(messages, asks_for_answer=False) == whole
    assert [found.text[a:b] for a, b in found.answers] == [text for text, is_answer in pieces if is_answer]
    assert found.text == whole[: found.answers[-1][1]]
    assert found.as_context == 0


@pytest.mark.parametrize("style", STYLES)
@given(messages=conversations(), max_tokens=st.integers(6, 120))
def test_tokens_of_answers_are_predicted_and_the_beginning_is_cut(
    tokenizer_file: Path, style: str, messages: list[Message], max_tokens: int
) -> None:
    """As of a prompt with its completion: the last answer keeps half of the row, what stands before loses its start."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    pieces = STYLES[style][1](messages)
    while not pieces[-1][1]:
        pieces.pop()
    told = [(token, is_answer) for text, is_answer in pieces for token in _ids(tokenizer, text)]
    last = len(_ids(tokenizer, pieces[-1][0]))
    begins = bool(tokenizer.encode("a").ids[:1] == [1]) and told[0][0] == 1
    first, rest = (told[:1], told[1:]) if begins else ([], told)
    of_prompt, of_answer = kept_tokens(len(rest) - last, last, max_tokens - len(first))
    prompt, answer = rest[: len(rest) - last], rest[len(rest) - last :]
    expected = [*first, *prompt[len(prompt) - of_prompt :], *answer[:of_answer]]
    dialogue = dialogue_of(render_answers(template_of_style(style), messages), messages)
    (row,) = CompletionEncoder(tokenizer_file, task(max_tokens)).encode_dialogues([dialogue])
    assert not isinstance(row, Fault)
    assert row.ids == [token for token, _ in expected]
    assert row.predicted == [index for index, (_, is_answer) in enumerate(expected) if is_answer and index]
    assert len(row.ids) <= max_tokens
    assert row.is_short == (len(expected) < len(told))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_conversation_of_any_length_is_cut_before_it_is_tokenised(tokenizer_file: Path) -> None:
    messages = [
        Message("user", "ab " * 300_000),
        Message("assistant", "b"),
        Message("user", "n"),
        Message("assistant", "a"),
    ]
    dialogue = dialogue_of(render_answers(template_of_style("turns"), messages), messages)
    (row,) = CompletionEncoder(tokenizer_file, task(40)).encode_dialogues([dialogue])
    assert not isinstance(row, Fault)
    text = Tokenizer.from_file(str(tokenizer_file)).decode(row.ids, skip_special_tokens=False)
    end = "<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nn<|end|>\n<|assistant|>\na<|end|>"
    assert ("ab " * 40 + end).endswith(text)
    assert text.endswith(f" {end}")
    assert (len(row.ids), row.is_cut, row.is_short) == (40, True, True)
    assert len(row.predicted) == 4  # b, a, and the end of each


def test_an_answer_that_is_written_otherwise_later_is_context_alone() -> None:
    """The first answer loses its beginning in the whole text, which no rendering of a part shows."""
    source = (
        "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'user' or loop.last %}{{ m.content }}"
        "{% else %}{{ m.content[2:] }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talk = [Message("user", "a"), Message("assistant", "12 b"), Message("user", "c"), Message("assistant", "12 d")]
    found = render_answers(ChatTemplate(source, {}), talk)
    assert isinstance(found, Rendered)
    assert [found.text[a:b] for a, b in found.answers] == ["12 d"]
    assert found.as_context == 1


def test_an_answer_whose_beginning_nobody_can_tell_is_a_fault() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
    found = render_answers(ChatTemplate(source, {}), [Message("user", "a"), Message("assistant", "b")])
    assert isinstance(found, Fault)
    assert "where it begins" in found.what


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(path: Path, rows: list[Any], template: ChatTemplate | None = None, **options: Any) -> list[Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read_prompts(DataConfig(str(path), **options), None if template is None else lambda: template).rows


def test_files_may_have_rows_of_both_kinds(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x", "completion": " y", "messages": TALK},
        {"messages": [*TALK, {"role": "user", "content": "c"}]},
    ]
    first, second = read(tmp_path / "a.jsonl", rows, template_of_style("instructions"))
    assert first == Completion("x", " y")
    assert second.text == "<s>[INST] a [/INST] b </s>"  # nothing is learned from what follows the last answer
    assert (second.prompt, second.completion) == ("user: a", "b")
    assert read(tmp_path / "b.jsonl", [{"talk": TALK}], messages_field="talk")[0].text == ""


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_the_same_conversations_in_other_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps([{"messages": TALK}], indent=1), "utf-8")
    else:
        arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        named = [{**message, "name": None} for message in TALK]
        writer.write_table(arrow.table({"messages": [named], "other": [1]}), path)
    (row,) = read_prompts(DataConfig(str(path)), lambda: template_of_style("turns")).rows
    assert isinstance(row, Dialogue)
    assert row.text == "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_prompts_and_conversations_in_the_same_columns(tmp_path: Path, suffix: str) -> None:
    """What a row does not use is null; a prompt may stand beside the conversation that begins with it."""
    path = tmp_path / f"a.{suffix}"
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "prompt_id": "1", "completion": " b", "messages": None},
        {"prompt": None, "prompt_id": "2", "completion": None, "messages": TALK},
        {"prompt": "a", "prompt_id": "3", "completion": None, "messages": TALK},
    ]
    if suffix == "jsonl":
        del rows[2]["completion"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        writer.write_table(arrow.Table.from_pylist(rows), path)
    first, *others = read_prompts(DataConfig(str(path)), lambda: template_of_style("turns")).rows
    assert first == Completion("a", " b")
    assert [type(one) for one in others] == [Dialogue, Dialogue]
    assert others[0] == others[1]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("a", "'messages' is not a list but str"),
        ([], "no answer: no message has the role 'assistant'"),
        (TALK[:1], "no answer"),
        (["a"], "message 1 is not an object but str"),
        ([{"role": "user"}], "message 1 has no 'content'"),
        ([{"role": "user", "content": ["a"]}], "'content' of message 1 is not text but list"),
        ([*TALK[:1], {"role": "assistant", "content": " "}], "message 2, an answer, is empty"),
        ([{"role": "user", "content": "a", "weight": 0}], "message 1 has 'weight'"),
        ([{"from": "human", "value": "a"}], "likely: the messages are written as from and value"),
    ],
)
def test_wrong_conversations_are_named_by_line(tmp_path: Path, messages: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": messages}])
    assert "1 of 2 rows are wrong" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert said in str(caught.value)
    assert "'prompt' and 'completion', or 'messages'" in caught.value.hint


def test_a_role_that_the_template_refuses_names_the_row(tmp_path: Path) -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + INSTRUCTIONS
    rows = [{"messages": TALK}, {"messages": [{"role": "robot", "content": "x"}, TALK[1]]}]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", rows, ChatTemplate(source, {"bos_token": "", "eos_token": ""}))
    assert "line 2: the bundle's chat template cannot write a conversation: begin with the user" in str(caught.value)
    assert "robot" not in caught.value.public


def test_half_a_character_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "\\ud800"}]}\n' + json.dumps({"messages": TALK}))
    reading = read_prompts(DataConfig(str(path)))
    assert (len(reading.rows), [number for number, _ in reading.skipped]) == (1, [1])


def test_data_check_without_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 2)
    asked = ["data", "check", "--task", "causal-lm", "--data", str(path)]
    assert cli.main([*asked, "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["rows"], values["conversations"], len(values["duplicates"])) == (2, 2, 1)
    assert cli.main(asked) == 0
    assert "2 conversations; what their texts and tokens are depends on the bundle" in capsys.readouterr().out
