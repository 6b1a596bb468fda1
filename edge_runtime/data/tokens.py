"""Encodes texts as token ids on the device, with the bundle's own tokenizer and template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from edge_runtime.data.vocabulary import check_rows
from edge_runtime.errors import BundleError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Encoding

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.examples import Completion

TEXT_FIELD = "{text}"
MASK_FIELD = "{mask}"


def load_tokenizer(tokenizer_file: Path) -> Tokenizer:
    """Load a ``tokenizer.json``, with its padding and truncation switched off.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BundleError(f"cannot read {tokenizer_file}: {error}", "fetch or export the bundle again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class TextEncoder:
    """Encodes texts as token ids for the bundle's task.

    A row that is too long loses the end of its text; special tokens, the template's words and its mask are always kept.
    A mask token inside a text is removed, because the model predicts exactly one token.

    Args:
        tokenizer_file: the bundle's.
        task: the bundle's.
        vocab_size: number of tokens that the model knows, manifest.vocab_size; None is unknown, and not checked.
    """

    def __init__(self, tokenizer_file: Path, task: Task, vocab_size: int | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer_file)
        self._task, self._vocab_size = task, vocab_size
        self._mask = task.mask_token
        self._template = (task.template or TEXT_FIELD).replace(MASK_FIELD, task.mask_token or MASK_FIELD)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, at most ``task.max_tokens`` of them.

        Raises:
            DataError: the template alone fills the whole row; or a row has no tokens, or one that the model lacks.
        """
        if self._mask is not None:
            texts = [text.replace(self._mask, " ") for text in texts]
        prompts = [self._template.replace(TEXT_FIELD, text) for text in texts]
        rows: list[list[int]] = [encoding.ids for encoding in self._tokenizer.encode_batch(prompts)]
        for index, ids in enumerate(rows):
            if len(ids) > self._task.max_tokens:
                rows[index] = self._encode_cut(texts[index])
        check_rows(rows, self._tokenizer, self._vocab_size)
        return rows

    def _encode_cut(self, text: str) -> list[int]:
        """Cut characters off the text's end, token by token, until the prompt fits."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        keep = min(len(offsets), self._task.max_tokens)
        while keep >= 0:
            kept = text[: offsets[keep - 1][1]] if keep else ""
            ids: list[int] = self._tokenizer.encode(self._template.replace(TEXT_FIELD, kept)).ids
            if len(ids) <= self._task.max_tokens:
                return ids
            keep -= max(1, len(ids) - self._task.max_tokens)
        raise DataError(
            f"the template {self._template!r} alone is longer than {self._task.max_tokens} tokens",
            "export with a larger --max-tokens or a shorter --template",
        )


@dataclass(frozen=True)
class EncodedCompletion:
    """Token ids of a prompt and its completion, and the index of the first token to predict (at least 1)."""

    ids: list[int]
    start: int


class CompletionEncoder:
    """Encodes prompts and completions as token ids.

    Both are encoded as one text, as a model would write it; the tokens that hold characters of the completion are the
    ones to predict, and the tokenizer's end-of-text token after them. Special tokens before a text (a beginning-of-text
    token) are kept, those after it are not.

    In a row that is too long the prompt loses its beginning; the completion loses its end, but never below half of the
    row. So neither is cut to nothing.

    Args:
        tokenizer_file: see TextEncoder.
        task: see TextEncoder.
        vocab_size: see TextEncoder.
    """

    def __init__(self, tokenizer_file: Path, task: Task, vocab_size: int | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer_file)
        self._task, self._vocab_size = task, vocab_size

    def encode(self, rows: Sequence[Completion]) -> list[EncodedCompletion]:
        """Return the tokens of each row, at most ``task.max_tokens`` of them.

        Raises:
            DataError: a row has no token that could be predicted, or one that the model lacks.
        """
        encodings = self._tokenizer.encode_batch([row.prompt + row.completion for row in rows])
        encoded = []
        for number, (row, encoding) in enumerate(zip(rows, encodings, strict=True), start=1):
            first, ids = _without_specials(encoding)
            offsets = encoding.offsets[len(first) : len(first) + len(ids)]
            cut = next((index for index, (_, end) in enumerate(offsets) if end > len(row.prompt)), len(ids))
            result = self._fit(first, ids[:cut], ids[cut:])
            if result.start >= len(result.ids):
                raise DataError(
                    f"row {number}: {row.completion!r} has no token that could be predicted",
                    "give a prompt, or a longer completion",
                    facts=f"row {number} has no token that could be predicted",
                )
            encoded.append(result)
        check_rows([row.ids for row in encoded], self._tokenizer, self._vocab_size)
        return encoded

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, with room for one more; a long prompt loses its beginning.

        Raises:
            DataError: a token is one that the model lacks.
        """
        first, ids = _without_specials(self._tokenizer.encode(prompt))
        room = self._task.max_tokens - 1 - len(first)
        kept = first + ids[max(0, len(ids) - room) :]
        if kept:
            check_rows([kept], self._tokenizer, self._vocab_size)
        return kept

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _fit(self, first: list[int], prompt: list[int], completion: list[int]) -> EncodedCompletion:
        room = self._task.max_tokens - len(first)
        if self._task.eos_token_id is not None and completion:
            completion = [*completion, self._task.eos_token_id]
        completion = completion[: max(room - len(prompt), room // 2)]
        prompt = prompt[max(0, len(prompt) + len(completion) - room) :]
        start = len(first) + len(prompt)
        return EncodedCompletion(first + prompt + completion, max(1, start))


def _without_specials(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Return the special tokens before a text, and the tokens of the text itself."""
    inside = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    begin, end = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
    return encoding.ids[:begin], encoding.ids[begin:end]
