"""A chat model's template travels in the bundle; the device writes and answers conversations as transformers does."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from predicting import leave_model
from tiny_exports import TinyExport
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_runtime import cli
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.chat import ChatTemplate, Conversation, Message, read_chat_template, read_conversation
from edge_runtime.data.config import DataConfig
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import DataError
from edge_runtime.predictions.rules import PredictRules
from edge_runtime.predictions.service import PredictionService, read_ask

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{ raise_exception('no such role: ' + message.role) }}
    {%- endif -%}
    {%- if loop.index > 3 -%}{%- break -%}{%- endif -%}
    {{ message['role'] }}: {{ message.content | trim }}{{ eos_token }}{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}assistant: {%- endif -%}
{{ {'a': '<é>'} | tojson }}"""
USER = Message("user", " it was <good> ")
MESSAGES = [Message("system", "a film"), USER]
TALK = json.dumps({"messages": [{"role": m.role, "content": m.content} for m in MESSAGES]})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny chat model: its template is in the folder, as transformers saves it."""
    folder = make_model("llama", tmp_path_factory.mktemp("models") / "llama")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def chat_bundle(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the chat model's bundle."""
    asked = TinyExport("llama", "causal-lm", splits=(1,), max_tokens=64)
    return asked.write(model_dir.parent, tmp_path_factory.mktemp("bundle") / "bundle")


def applied(model_dir: Path, messages: list[Message], **options: Any) -> Any:
    """Return what transformers makes of a conversation."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    talk = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(talk, **options)


@pytest.mark.parametrize("messages", [[USER], MESSAGES, [*MESSAGES, USER, USER, USER]], ids=len)
@pytest.mark.parametrize("asks", [False, True])
def test_text_is_that_of_transformers(
    chat_bundle: Bundle, model_dir: Path, messages: list[Message], asks: bool
) -> None:
    ours = read_chat_template(chat_bundle).render(messages, asks_for_answer=asks)
    assert ours == applied(model_dir, messages, tokenize=False, add_generation_prompt=asks)
    assert ours.startswith("<s>")


def test_answers_are_those_of_transformers(
    chat_bundle: Bundle, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokens are the same, one <s> at the beginning among them, and so are the answers."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer, manifest = AutoTokenizer.from_pretrained(model_dir), chat_bundle.manifest
    encoder = CompletionEncoder(chat_bundle.file(manifest.tokenizer_file), manifest.task, manifest.vocab_size)
    template, texts, wanted = read_chat_template(chat_bundle), ["it was good", "a film", "b", "Zz 9", "terrible ?"], []
    for text in texts:
        messages = [Message("user", text)]
        given = applied(model_dir, messages, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        assert encoder.encode_rendered(template.render(messages)) == given["input_ids"][0].tolist()
        tokens = model.generate(**given, max_new_tokens=6, do_sample=False)[0, given["input_ids"].shape[1] :]
        wanted.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert any(wanted)
    asked = ["predict", "--bundle", str(chat_bundle.path), "--chat", "--max-new-tokens", "6", *texts]
    assert cli.main([*asked, "--format", "json"]) == 0
    assert [made["completion"] for made in json.loads(capsys.readouterr().out)["predictions"]] == wanted
    assert cli.main(asked) == 0
    assert "user: " not in capsys.readouterr().out


def test_a_text_is_a_message_of_the_user() -> None:
    assert read_conversation("it was good") == [Message("user", "it was good")]
    assert read_conversation(f" {TALK}") == MESSAGES
    assert Conversation(MESSAGES).messages == MESSAGES


@pytest.mark.parametrize("text", ["{", "{}", '{"messages": []}', '{"messages": [{"role": "user"}]}', TALK + "}"])
def test_what_is_no_conversation_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="a conversation cannot be read") as caught:
        read_conversation(text)
    assert '"messages"' in caught.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error(source: str) -> None:
    with pytest.raises(DataError, match="cannot write a conversation"):
        ChatTemplate(source, {}).render([USER])


def test_errors_of_the_command(
    chat_bundle: Bundle, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(bundle: Bundle, text: str) -> tuple[int, str]:
        return cli.main(["predict", "--bundle", str(bundle.path), "--chat", text]), capsys.readouterr().err

    robot = json.dumps({"messages": [{"role": "robot", "content": "x"}]})
    for given, code, said in (
        ((tiny_bundle, "x"), 3, "the bundle's task is classify-head"),
        ((chat_bundle, robot), 4, "no such role: robot"),
        ((chat_bundle, "it was good " * 60), 4, "tokens long"),
    ):
        found, text = refused(*given)
        assert (found, said in text) == (code, True), text
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, text = refused(chat_bundle, "x")
    assert code == 3
    assert "covey[chat]" in text


@pytest.mark.slow
def test_a_template_that_is_missing_or_altered_is_named(
    chat_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = TinyExport("llama", "causal-lm", splits=(1,)).write(tmp_path / "models", tmp_path / "plain")
    assert cli.main(["predict", "--bundle", str(plain.path), "--chat", "x"]) == 3
    assert "has no chat template" in capsys.readouterr().err
    shutil.copytree(chat_bundle.path, tmp_path / "altered")
    (tmp_path / "altered" / "tokenizer" / "chat_template.jinja").write_text("{{ bos_token }}")
    assert cli.main(["predict", "--bundle", str(open_bundle(tmp_path / "altered").path), "--chat", "x"]) == 5
    assert "chat_template.jinja was altered" in capsys.readouterr().err


def test_a_request_for_chat_gets_the_answers_of_the_command(
    chat_bundle: Bundle, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def service_of(bundle: Bundle) -> PredictionService:
        store = leave_model(tmp_path / bundle.sha256[:8], bundle)
        data = DataConfig(str(tmp_path / "rows.jsonl"))
        return PredictionService(store, data, Engines(threads=1), PredictRules(), lambda: None, lambda: 0.0)

    texts = ["it was good", TALK]
    assert cli.main(["predict", "--bundle", str(chat_bundle.path), "--chat", "--format", "json", *texts]) == 0
    expected = json.loads(capsys.readouterr().out)["predictions"]
    service = service_of(chat_bundle)
    asked = read_ask(json.dumps({"text": texts, "chat": True}).encode())
    assert service.predict(asked)["predictions"] == expected
    plain = service.predict(read_ask(json.dumps({"text": texts[0]}).encode()))["predictions"]
    assert plain[0]["prompt"] == texts[0]
    with pytest.raises(DataError, match="this device's model classifies texts"):
        service_of(tiny_bundle).predict(asked)
