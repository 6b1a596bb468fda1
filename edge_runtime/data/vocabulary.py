"""The tokenizer of a bundle against its model's vocabulary, and special tokens that stand in texts."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from edge_runtime.errors import BundleError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from edge_runtime.bundle.manifest import Task

_SHOWN = 5


def check_vocabulary(tokenizer: Tokenizer, task: Task, vocab_size: int | None) -> None:
    """Check that neither the tokenizer nor the task has a token that the model has no embedding for.

    Args:
        tokenizer: the bundle's.
        task: the bundle's.
        vocab_size: number of tokens with an embedding; None is unknown, and nothing is checked.

    Raises:
        BundleError: there is such a token; the message names the first ones.
    """
    if vocab_size is None:
        return
    hint = "export the model again; covey export compares the tokenizer with the model"
    named = {"pad_token_id": task.pad_token_id, "mask_token_id": task.mask_token_id, "eos_token_id": task.eos_token_id}
    named |= {f"label_token_ids[{index}]": token for index, token in enumerate(task.label_token_ids or [])}
    for name, token in named.items():
        if token is not None and not 0 <= token < vocab_size:
            raise BundleError(f"the task's {name} is {token}, and the model knows {vocab_size} tokens", hint)
    outside = sorted((i, text) for text, i in tokenizer.get_vocab(with_added_tokens=True).items() if i >= vocab_size)
    if outside:
        raise BundleError(
            f"the bundle's tokenizer has {len(outside)} tokens that the model, which knows {vocab_size}, has no "
            f"embedding for: {', '.join(f'{text!r} ({token})' for token, text in outside[:_SHOWN])}",
            hint,
        )


def check_rows(rows: Sequence[Sequence[int]], tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Check that every row has tokens, and none that the model has no embedding for.

    Args:
        rows: token ids of each row.
        tokenizer: what made them.
        vocab_size: see check_vocabulary.

    Raises:
        DataError: the numbers of the rows, from 1, and the first such token.
    """
    empty = [number for number, ids in enumerate(rows, start=1) if not ids]
    if empty:
        raise DataError(
            f"{_rows(empty)}: the tokenizer makes no tokens of the text",
            "remove these rows, or write a text into them",
            facts=f"{len(empty)} of {len(rows)} rows have no tokens, the first is row {empty[0]}",
        )
    if vocab_size is None:
        return
    outside = [number for number, ids in enumerate(rows, start=1) if max(ids) >= vocab_size]
    if outside:
        token = max(rows[outside[0] - 1])
        raise DataError(
            f"{_rows(outside)}: {tokenizer.id_to_token(token)!r} is token {token} of the bundle's tokenizer, and the "
            f"model knows {vocab_size} tokens",
            "write it in another way, or export the model again, with the tokenizer that belongs to it",
            facts=f"{len(outside)} of {len(rows)} rows have a token that the model does not know, "
            f"the first is row {outside[0]}",
        )


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    return ("row " if len(numbers) == 1 else f"{len(numbers)} rows: ") + shown + (", …" if numbers[_SHOWN:] else "")


def special_tokens_in(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Return in how many texts each special token stands written out, such as ``[SEP]`` or ``</s>``.

    The tokenizer reads it as the token: prompts with roles are meant so, other texts seldom.
    """
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if not special:
        return {}
    written = re.compile("|".join(re.escape(content) for content in special))
    counts: Counter[str] = Counter()
    for text in texts:
        if written.search(text) is None:
            continue
        encoding = tokenizer.encode(text, add_special_tokens=False)
        pieces = zip(encoding.ids, encoding.offsets, strict=True)
        # A word that the vocabulary lacks becomes the token for unknown words, without being written out.
        counts.update({content for token, (a, b) in pieces if special.get(content := text[a:b].strip()) == token})
    return dict(sorted(counts.items()))
