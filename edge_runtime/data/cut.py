"""Cuts long texts by characters before they are tokenised, so that a text of any length costs little memory.

A row keeps at most ``max_tokens`` tokens. The cut keeps more than twice as many, and counts only those of whole words,
because tokenizers divide a text at its spaces: what a word becomes does not depend on the words around it, but the
tokens at the beginning of an endless word may depend on its end. A text without spaces is kept up to MOST_CHARACTERS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Spans = Callable[[str], Iterable[tuple[int, int]]]

CHARACTERS_PER_TOKEN = 8
"""Characters that are kept at first for each token that is wanted; where they give too few tokens, they are doubled."""
SPARE_TOKENS = 64
MOST_CHARACTERS = 2**18
"""So many characters are kept at most (or 8 for each wanted token, if those are more), even where they give too few
tokens. Tokenising takes about 280 bytes of memory a character."""


def beginning(text: str, n_tokens: int, spans: Spans) -> str:
    """Return a text's beginning whose first ``n_tokens`` tokens are those of the whole text.

    Args:
        text: any text; a short one is returned whole.
        n_tokens: number of tokens that may be used.
        spans: returns the first character of each token of a text, and the one after its last.
    """

    def in_whole_words(size: int) -> int:
        piece = text[:size]
        last = len(piece.rpartition(" ")[0].rstrip(" "))
        return sum(end <= last for _, end in spans(piece))

    return text[: _size(in_whole_words, len(text), n_tokens)]


def ending(text: str, n_tokens: int, spans: Spans) -> str:
    """Return a text's end whose last ``n_tokens`` tokens are those of the whole text; see beginning."""

    def in_whole_words(size: int) -> int:
        piece = text[len(text) - size :]
        first = size - len(piece.partition(" ")[2].lstrip(" "))
        return sum(start >= first for start, _ in spans(piece))

    return text[len(text) - _size(in_whole_words, len(text), n_tokens) :]


def _size(in_whole_words: Callable[[int], int], length: int, n_tokens: int) -> int:
    """Return how many characters are kept; ``in_whole_words`` returns the number of tokens that so many give."""
    wanted = 2 * n_tokens + SPARE_TOKENS
    size = CHARACTERS_PER_TOKEN * wanted
    most = max(MOST_CHARACTERS, size)
    while size < min(length, most) and in_whole_words(size) < wanted:
        size = min(2 * size, most)
    return min(size, length)


def kept_tokens(prompt: int, completion: int, room: int) -> tuple[int, int]:
    """Return how many tokens of a prompt's end and of a completion's beginning fit into a row.

    The prompt loses its beginning; the completion loses its end, but never below half of the row.

    Args:
        prompt: tokens of the prompt.
        completion: tokens of the completion.
        room: tokens that fit.
    """
    completion = min(completion, max(room - prompt, room // 2))
    return min(prompt, room - completion), completion
