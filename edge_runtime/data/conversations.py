"""Rows that are conversations: ``{"messages": [{"role": "user", "content": …}, …]}``, from which a chat model learns.

A conversation ends with its last answer: nothing is learned from what follows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from edge_runtime.data.answers import ASSISTANT, Span, render_answers
from edge_runtime.data.chat import Message, read_chat_template, require_jinja2
from edge_runtime.data.problems import Fault, Likely, counted, damage
from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.chat import ChatTemplate

_FIELDS = ("role", "content")
LIKELY = {
    "from-value": Likely(
        "the messages are written as from and value, as ShareGPT does",
        "write role and content, with the roles that the model's template knows; a transform under [data] can do it",
    )
}
"""What is likely to be behind a kind of fault."""


@dataclass(frozen=True)
class Dialogue:
    """One example for a chat model.

    Attributes:
        messages: oldest first; the last one is the assistant's.
        text: what the bundle's template makes of them; empty where there is no bundle.
        answers: what of the text the assistant wrote; see answers.Rendered.
        as_context: see answers.Rendered.
    """

    messages: tuple[Message, ...]
    text: str = ""
    answers: tuple[Span, ...] = ()
    as_context: int = 0

    @property
    def prompt(self) -> str:
        """All messages before the last answer, to tell one conversation from another."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages[:-1])

    @property
    def completion(self) -> str:
        """The last answer."""
        return self.messages[-1].content


def template_of(bundle: Bundle, path: str) -> Callable[[], ChatTemplate]:
    """Return a function that gives the bundle's chat template, read when the first conversation needs it.

    Args:
        bundle: the bundle.
        path: the file of rows, for messages.

    The function raises:
        DataError: the bundle has no template, or jinja2 is not installed.
        BundleError: see read_chat_template.
    """

    @cache
    def template() -> ChatTemplate:
        facts = "its rows are conversations, which cannot be rendered here"
        try:
            require_jinja2()
        except ConfigError as error:
            raise DataError(f"{path} has conversations: {error.what}", error.hint, facts=facts) from error
        try:
            return read_chat_template(bundle)
        except ConfigError as error:
            hint = "export a chat model, whose folder has chat_template.jinja; or write rows of prompt and completion"
            raise DataError(f"{path} has conversations, and {error.what}", hint, facts=facts) from error

    return template


def dialogue_of(messages: object, field: str, template: Callable[[], ChatTemplate] | None) -> Dialogue | Fault:
    """Return a row of messages, up to its last answer, or what is wrong with it.

    Args:
        messages: what the row has under ``field``.
        field: the name.
        template: gives the bundle's template; None: there is no bundle, and the messages alone are checked.

    Raises:
        DataError: see template_of.
    """
    if not isinstance(messages, list):
        return Fault(f"{field!r} is not a list but {type(messages).__name__}", "type")
    read: list[Message] = []
    for number, message in enumerate(messages, 1):
        found = _message(message, f"message {number}")
        if isinstance(found, Fault):
            return found
        read.append(found)
    while read and read[-1].role != ASSISTANT:
        del read[-1]
    if not read:
        return Fault(f"{field!r} has no answer: no message has the role {ASSISTANT!r}", "no-answer")
    dialogue = Dialogue(tuple(read))
    if template is None:
        return dialogue
    rendered = render_answers(template(), read)
    if isinstance(rendered, Fault):
        return rendered
    return Dialogue(dialogue.messages, rendered.text, tuple(rendered.answers), rendered.as_context)


def _message(message: object, where: str) -> Message | Fault:
    if not isinstance(message, dict):
        return Fault(f"{where} is not an object but {type(message).__name__}", "type")
    told: dict[str, Any] = {name: value for name, value in message.items() if value is not None}
    fault = _wrong_fields(told, where)
    if fault is not None:
        return fault
    role, content = told["role"], told["content"]
    if role == ASSISTANT and not content.strip():
        return Fault(f"{where}, an answer, is empty", "empty")
    return damage(role + content) or Message(role, content)


def _wrong_fields(message: dict[str, Any], where: str) -> Fault | None:
    if {"from", "value"} <= set(message):
        return Fault(f"{where} has 'from' and 'value', not 'role' and 'content'", "from-value")
    more = sorted(map(str, set(message) - set(_FIELDS)))
    if more:
        return Fault(f"{where} has {more[0]!r}: Covey renders role and content alone", "message")
    for name in _FIELDS:
        if name not in message:
            return Fault(f"{where} has no {name!r}", "message")
        if not isinstance(message[name], str):
            return Fault(f"{name!r} of {where} is not text but {type(message[name]).__name__}", "type")
    return None


def dialogues_of(rows: Sequence[object]) -> tuple[dict[str, object], list[str]]:
    """Return how many rows are conversations, and what is learned from them, as values and as lines of text."""
    dialogues = [row for row in rows if isinstance(row, Dialogue)]
    if not dialogues:
        return {}, []
    learned, context = sum(len(row.answers) for row in dialogues), sum(row.as_context for row in dialogues)
    values: dict[str, object] = {"conversations": len(dialogues)}
    said = counted(len(dialogues), "conversation")
    if not learned:
        return values, [f"  {said}; what their texts and tokens are depends on the bundle: --bundle"]
    lines = [f"  {said}: {counted(learned, 'answer')} to learn"]
    if context:
        lines.append(
            f"  {counted(context, 'answer')} more as context alone: the chat template writes them otherwise once more "
            "messages follow"
        )
    return values | {"answers": learned, "answers_as_context": context}, lines
