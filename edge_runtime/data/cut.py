"""Cuts long texts by characters before they are tokenised, so that a text of any length costs little memory.

A row keeps at most ``max_tokens`` tokens. Tokens depend on the characters around them, so those at the cut may differ
from the whole text's: the cut keeps more than twice the tokens that can count, and none of those near it is among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Spans = Callable[[str], Iterable[tuple[int, int]]]

CHARACTERS_PER_TOKEN = 8
"""Characters that are kept at first for each token that is wanted; where they give too few tokens, they are doubled."""
SPARE_TOKENS = 64
SPARE_CHARACTERS = 256
"""Tokens this close to the cut do not count. WordPiece takes a word of more than 100 characters as one token."""
MOST_CHARACTERS = 2**18
"""So many characters are kept at most (or 8 for each wanted token, if those are more), even where they give too few
tokens: a text of one endless word is one token. Tokenising takes about 280 bytes of memory a character."""


def beginning(text: str, n_tokens: int, spans: Spans) -> str:
    """Return a text's beginning whose first ``n_tokens`` tokens are those of the whole text.

    Args:
        text: any text; a short one is returned whole.
        n_tokens: number of tokens that may be used.
        spans: returns the first character of each token of a text, and the one after its last.
    """

    def far_from_cut(size: int) -> int:
        return sum(end <= size - SPARE_CHARACTERS for _, end in spans(text[:size]))

    return text[: _size(far_from_cut, len(text), n_tokens)]


def ending(text: str, n_tokens: int, spans: Spans) -> str:
    """Return a text's end whose last ``n_tokens`` tokens are those of the whole text; see beginning."""

    def far_from_cut(size: int) -> int:
        return sum(start >= SPARE_CHARACTERS for start, _ in spans(text[len(text) - size :]))

    return text[len(text) - _size(far_from_cut, len(text), n_tokens) :]


def _size(far_from_cut: Callable[[int], int], length: int, n_tokens: int) -> int:
    """Return how many characters are kept; ``far_from_cut`` returns the number of tokens that so many give."""
    wanted = 2 * n_tokens + SPARE_TOKENS
    size = CHARACTERS_PER_TOKEN * wanted + SPARE_CHARACTERS
    most = max(MOST_CHARACTERS, size)
    while size < min(length, most) and far_from_cut(size) < wanted:
        size = min(2 * size, most)
    return min(size, length)
