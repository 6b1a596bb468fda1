"""The tokenizer of a bundle against its model's vocabulary, and special tokens that stand in texts."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from edge_runtime.data.problems import Fault
from edge_runtime.errors import BundleError

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


def unknown_token(ids: Sequence[int], tokenizer: Tokenizer, vocab_size: int | None) -> Fault | None:
    """Return why a row cannot be used that has a token for which the model has no embedding; None: it has none.

    Args:
        ids: the row's tokens.
        tokenizer: what made them.
        vocab_size: see check_vocabulary.
    """
    if vocab_size is None or not ids or max(ids) < vocab_size:
        return None
    token = max(ids)
    return Fault(
        f"{tokenizer.id_to_token(token)!r} is token {token} of the bundle's tokenizer, "
        f"and the model knows {vocab_size} tokens",
        "tokenizer",
        is_skipped=True,
    )


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
