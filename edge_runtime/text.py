"""From text to padded token batches, on the device, with the bundle's own tokenizer and template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from edge_runtime.errors import BundleError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.manifest import Task

TEXT_FIELD = "{text}"
MASK_FIELD = "{mask}"


class TextEncoder:
    """Turns texts into token ids the way the bundle's task wants them.

    A row that is too long loses the end of its text; special tokens, the template's words and its mask are always kept.
    A mask token in a text itself is taken out: the model is asked about one token.
    """

    def __init__(self, tokenizer_file: Path, task: Task) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise BundleError(f"cannot read {tokenizer_file}: {error}", "fetch or export the bundle again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._task = task
        self._mask = task.mask_token
        self._template = (task.template or TEXT_FIELD).replace(MASK_FIELD, task.mask_token or MASK_FIELD)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, at most ``task.max_tokens`` of them.

        Raises:
            DataError: the template alone fills the whole row.
        """
        if self._mask is not None:
            texts = [text.replace(self._mask, " ") for text in texts]
        prompts = [self._template.replace(TEXT_FIELD, text) for text in texts]
        rows: list[list[int]] = [encoding.ids for encoding in self._tokenizer.encode_batch(prompts)]
        for index, ids in enumerate(rows):
            if len(ids) > self._task.max_tokens:
                rows[index] = self._encode_cut(texts[index])
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
