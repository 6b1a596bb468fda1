"""Which characters of a rendered conversation the assistant wrote: those are the ones that a model learns to write.

A template that has the tag ``generation`` says it itself. For the others, an answer is what the template writes between
the words that ask for it and the next message, without the blank characters behind it: the conversation is rendered up
to the answer and up to its end, and both texts must be found in the whole one. Some templates write an early answer
otherwise once more follows; such an answer is context where it cannot be found, and nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.data.problems import Fault
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.data.chat import ChatTemplate, Message

Span = tuple[int, int]
"""The first character, and the one after the last."""
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Rendered:
    """A conversation as a chat template writes it, up to the end of its last answer.

    Attributes:
        text: with its special tokens: tokenise it without adding any.
        answers: what the assistant wrote, the end of its turn included, ascending; the last one ends the text.
        as_context: number of answers that are not among them, because the template writes them otherwise than it asks
            for them.
    """

    text: str
    answers: list[Span]
    as_context: int


def render_answers(template: ChatTemplate, messages: Sequence[Message]) -> Rendered | Fault:
    """Return a conversation as text, and which of its characters the assistant wrote; or why that cannot be said.

    Args:
        template: the model's.
        messages: oldest first, the last one of the assistant.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        text, marked = template.render_marked(messages, asks_for_answer=False)
    except DataError as error:
        return Fault(error.what, "template")
    if marked:
        return Rendered(text[: marked[-1][1]], marked, 0)
    turns = [index for index, message in enumerate(messages) if message.role == ASSISTANT]
    found = [_answer(template, messages, index, text) for index in turns]
    if found[-1] is None:
        return Fault(
            "the bundle's chat template writes the last answer otherwise than it asks for it, so that nobody can tell "
            "where it begins",
            "template",
        )
    answers = [span for span in found if span is not None]
    return Rendered(text[: answers[-1][1]], answers, len(found) - len(answers))


def _answer(template: ChatTemplate, messages: Sequence[Message], index: int, whole: str) -> Span | None:
    """Return where one answer stands in the whole text; None: the template does not show it."""
    try:
        asked = template.render(messages[:index], asks_for_answer=True)
        told = template.render(messages[: index + 1], asks_for_answer=False)
    except DataError:
        return None  # the template refuses a part of what it takes as a whole
    if not told.startswith(asked) or not whole.startswith(asked):
        return None
    start = len(asked)
    answer = told[start:].rstrip()
    if answer and whole.startswith(answer, start):
        return start, start + len(answer)
    # Once more follows, a template may leave out what stood before the answer's content (its reasoning).
    for content in (messages[index].content, messages[index].content.strip()):
        at = answer.find(content)
        while at >= 0:
            if whole.startswith(answer[at:], start):
                return start, start + len(answer) - at
            at = answer.find(content, at + 1)
    return None
