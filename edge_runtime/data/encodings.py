"""Tokenises texts in small batches. A text that the tokenizer refuses costs its own row and no other."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.data.problems import Fault
from edge_runtime.errors import as_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenizers import Encoding, Tokenizer

ResultT = TypeVar("ResultT")

REFUSED = Fault("the bundle's tokenizer refuses it", "tokenizer", is_skipped=True)
NOTHING_TO_PREDICT = Fault("it has no token that could be predicted", "tokenizer", is_skipped=True)
_BATCH = 64
"""Texts that are tokenised at once: an encoding takes far more memory than its ids."""


def encode_each(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True
) -> list[Encoding | None]:
    """Return the encoding of each text; None: the tokenizer refuses it."""
    encode = functools.partial(tokenizer.encode, add_special_tokens=add_special_tokens)
    encode_batch = functools.partial(tokenizer.encode_batch, add_special_tokens=add_special_tokens)
    encodings: list[Encoding | None] = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        found = unless_refused(encode_batch, batch)
        encodings += [unless_refused(encode, text) for text in batch] if found is None else found
    return encodings


def unless_refused(encode: Callable[..., ResultT], text: str | Sequence[str]) -> ResultT | None:
    """Return ``encode(text)``; None: the tokenizer refuses the text.

    The tokenizers library raises a plain Exception, a TypeError where a text is no Unicode, or Rust's PanicException,
    which is no Exception.
    """
    try:
        return encode(text)
    except MemoryError:
        raise
    except BaseException as caught:  # noqa: BLE001 see above
        as_exception(caught)
        return None
