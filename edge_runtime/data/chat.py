"""Chat templates: turns a conversation into the text that a chat model was trained to continue.

The template is the tokenizer's own, which ``covey export`` copies into the bundle. It is a program, so it runs in
jinja2's sandbox: it sees the messages and the special tokens, and neither files, modules nor the clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec

from edge_runtime.bundle.folder import check_file
from edge_runtime.data.generation_tag import generation_tag, without_marks
from edge_runtime.errors import BundleError, ConfigError, DataError, wall
from edge_runtime.values import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle

TEMPLATE_FILE = "chat_template.jinja"
"""Beside tokenizer.json, as transformers writes it."""
_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_MISSING = "the tokenizer of the bundle's model has no chat template"
_AGAIN = "fetch or export the bundle again"
_FORM = 'write {"messages": [{"role": "user", "content": "…"}]} on one line, or a text that does not begin with {'


class Message(Strict, frozen=True):
    """One message of a conversation. ``role`` is what the template knows: mostly system, user or assistant."""

    role: str
    content: str


class Conversation(Strict, frozen=True):
    """The messages of a conversation, oldest first."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]


def read_conversation(text: str) -> list[Message]:
    """Return the messages of ``{"messages": […]}``; a text that is no JSON object is one message of the user.

    Raises:
        DataError: the text begins like a JSON object and is no conversation.
    """
    if not text.lstrip().startswith("{"):
        return [Message("user", text)]
    facts = "a conversation cannot be read"
    with wall(lambda cause: DataError(f"{facts}: {cause}", _FORM, facts=facts)):
        return msgspec.json.decode(text, type=Conversation).messages


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the special tokens that it may write, by their names in the template.

    Attributes:
        source: the template, in jinja2's language.
        special_tokens: for example ``bos_token``; a token that the tokenizer lacks is not among them.
    """

    source: str
    special_tokens: dict[str, str]

    def render(self, messages: Sequence[Message], *, asks_for_answer: bool = True) -> str:
        """Return a conversation as text, special tokens included: tokenise it without adding any.

        Args:
            messages: oldest first.
            asks_for_answer: end with the words that begin the assistant's answer, if the template has such words.

        Raises:
            ConfigError: jinja2 is not installed.
            DataError: the template refuses the conversation, or fails on it.
        """
        return self.render_marked(messages, asks_for_answer=asks_for_answer)[0]

    def render_marked(self, messages: Sequence[Message], *, asks_for_answer: bool) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of render, and the spans of characters that the template says the assistant wrote.

        A template says so with the tag ``generation``; most templates do not have it, and there are no spans.

        Raises:
            CoveyError: see render.
        """
        facts = "the bundle's chat template cannot write a conversation"
        require_jinja2()
        with wall(lambda cause: DataError(f"{facts}: {cause}", "give messages whose roles it knows", facts=facts)):
            marked: str = self._program.render(
                messages=[msgspec.structs.asdict(message) for message in messages],
                add_generation_prompt=asks_for_answer,
                **self.special_tokens,
            )
        return without_marks(marked)

    @cached_property
    def _program(self) -> Any:  # noqa: ANN401 a type of the extra
        return _sandbox().from_string(self.source)


def read_chat_template(bundle: Bundle) -> ChatTemplate:
    """Read the chat template of a bundle; its hash, and that of the special tokens' file, are the manifest's.

    Raises:
        ConfigError: the bundle has none: its model is no chat model.
        BundleError: a file was altered, or cannot be read.
    """
    folder = PurePosixPath(bundle.manifest.tokenizer_file).parent
    listed = {entry.path for entry in bundle.manifest.files}
    name, config = str(folder / TEMPLATE_FILE), str(folder / _CONFIG_FILE)
    if name not in listed:
        raise ConfigError(_MISSING, "leave out chat, and give the text that the model shall continue")
    if config not in listed:
        raise BundleError(f"the bundle has {name} and no {config}", _AGAIN)
    for path in (name, config):
        check_file(bundle.file(path), bundle.manifest.file(path))
    with wall(lambda cause: BundleError(f"{name} or {config} cannot be read: {cause}", _AGAIN)):
        source = bundle.file(name).read_text(encoding="utf-8")
        described = json.loads(bundle.file(config).read_text(encoding="utf-8"))
        return ChatTemplate(source, {role: _text(described[role]) for role in _SPECIAL if described.get(role)})


def _text(token: str | dict[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def require_jinja2() -> None:
    """Check that jinja2 is installed, which renders templates.

    Raises:
        ConfigError: it is not.
    """
    try:
        import jinja2  # noqa: F401, PLC0415 of an extra
    except ImportError as error:
        raise ConfigError(
            f"chat templates need jinja2, which is not installed ({error})", "pip install 'covey[chat]'"
        ) from error


def _sandbox() -> Any:  # noqa: ANN401 a type of the extra
    """Return jinja2's sandbox with what templates of chat models expect: see transformers' own."""
    from jinja2 import TemplateError  # noqa: PLC0415 of an extra
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment
