"""Rendered conversations as token ids, with the tokens that the assistant wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.data.cut import beginning, ending, kept_tokens
from edge_runtime.data.encodings import NOTHING_TO_PREDICT, REFUSED, encode_each, unless_refused
from edge_runtime.data.vocabulary import unknown_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

    from edge_runtime.data.answers import Span
    from edge_runtime.data.conversations import Dialogue
    from edge_runtime.data.problems import Fault


@dataclass(frozen=True)
class EncodedDialogue:
    """Token ids of a conversation, and the indices of those to predict, ascending, from 1.

    ``is_cut`` and ``is_short``: see EncodedText.
    """

    ids: list[int]
    predicted: list[int]
    is_cut: bool = False
    is_short: bool = False


@dataclass(frozen=True)
class _Part:
    """What of a conversation's text is tokenised: its last answer's beginning, and the end of what stands before it."""

    text: str
    prompt: int
    """Characters before the last answer."""
    answers: list[Span]
    is_cut: bool


def encode_dialogues(
    tokenizer: Tokenizer, rows: Sequence[Dialogue], first: list[int], max_tokens: int, vocab_size: int | None
) -> list[EncodedDialogue | Fault]:
    """Return the tokens of each conversation, or why it cannot be used.

    A token is predicted where it holds a character that the assistant wrote. A conversation that is too long is cut as
    a prompt with its completion is, the last answer being the completion; the tokens of earlier answers that are left
    are predicted too.

    Args:
        tokenizer: the bundle's.
        rows: rendered conversations.
        first: the special tokens that the tokenizer puts before a text. Where the template writes them at a
            conversation's beginning, they stay there when it is cut.
        max_tokens: of a row.
        vocab_size: see TextEncoder.
    """
    begin = "".join(str(tokenizer.id_to_token(token)) for token in first)
    parts = [_part(tokenizer, row, max_tokens) for row in rows]
    texts = ["" if part is None else part.text for part in parts]
    encoded: list[EncodedDialogue | Fault] = []
    for row, part, encoding in zip(rows, parts, encode_each(tokenizer, texts, add_special_tokens=False), strict=True):
        if part is None or encoding is None:
            encoded.append(REFUSED)
            continue
        result = _fit(encoding, part, first if begin and row.text.startswith(begin) else [], max_tokens)
        unknown = unknown_token(result.ids, tokenizer, vocab_size)
        encoded.append(unknown or (result if result.predicted else NOTHING_TO_PREDICT))
    return encoded


def _part(tokenizer: Tokenizer, row: Dialogue, max_tokens: int) -> _Part | None:
    def spans(text: str) -> list[Span]:
        found: list[Span] = tokenizer.encode(text, add_special_tokens=False).offsets
        return found

    start, end = row.answers[-1]
    prompt = unless_refused(lambda text: ending(text, max_tokens, spans), row.text[:start])
    answer = unless_refused(lambda text: beginning(text, max_tokens, spans), row.text[start:end])
    if prompt is None or answer is None:
        return None
    gone, text = start - len(prompt), prompt + answer
    answers = [(max(0, a - gone), min(b - gone, len(text))) for a, b in row.answers if b > gone]
    return _Part(text, len(prompt), answers, is_cut=len(text) < end)


def _fit(encoding: Encoding, part: _Part, first: list[int], max_tokens: int) -> EncodedDialogue:
    """Return the tokens that fit into a row."""
    ids: list[int] = encoding.ids
    answers = iter(part.answers)
    answer: Span | None = next(answers)
    predicted = []
    for index, (a, b) in enumerate(encoding.offsets):
        while answer is not None and answer[1] <= a:
            answer = next(answers, None)
        if answer is not None and b > answer[0]:
            predicted.append(index)
    at = next((index for index, (_, end) in enumerate(encoding.offsets) if end > part.prompt), len(ids))
    skip = len(first) if ids[: len(first)] == first else 0
    of_prompt, of_answer = kept_tokens(at - skip, len(ids) - at, max_tokens - len(first))
    begin, end = at - of_prompt, at + of_answer
    shift = begin - len(first)
    return EncodedDialogue(
        first + ids[begin:end],
        [index - shift for index in predicted if begin <= index < end and index > shift],
        part.is_cut,
        part.is_cut or end - begin < len(ids) - skip,
    )
