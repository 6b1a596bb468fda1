"""Encodes texts as token ids on the device, with the bundle's own tokenizer and template."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.data.cut import beginning, ending, kept_tokens
from edge_runtime.data.dialogue_tokens import encode_dialogues
from edge_runtime.data.encodings import NOTHING_TO_PREDICT, REFUSED, encode_each, unless_refused
from edge_runtime.data.problems import Fault
from edge_runtime.data.vocabulary import unknown_token
from edge_runtime.errors import BundleError, DataError, as_exception

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Encoding, Tokenizer

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.conversations import Dialogue
    from edge_runtime.data.dialogue_tokens import EncodedDialogue
    from edge_runtime.data.examples import Completion

RowT = TypeVar("RowT")

TEXT_FIELD = "{text}"
MASK_FIELD = "{mask}"
NO_TOKENS = Fault("the bundle's tokenizer makes no token of it", "tokenizer", is_skipped=True)


def load_tokenizer(tokenizer_file: Path) -> Tokenizer:
    """Load a ``tokenizer.json``, with its padding and truncation switched off.

    Raises:
        BundleError: it cannot be read.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 loaded with the first bundle

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except BaseException as caught:  # noqa: BLE001 the tokenizers library raises plain Exception, and panics
        error = as_exception(caught)
        raise BundleError(f"cannot read {tokenizer_file}: {error}", "fetch or export the bundle again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True)
class EncodedText:
    """Token ids of a text.

    Attributes:
        ids: the tokens.
        is_cut: whether it was so long that it was cut before it was tokenised.
        is_short: whether some of its tokens are missing, because the row is full.
    """

    ids: list[int]
    is_cut: bool = False
    is_short: bool = False


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
            DataError: the template alone fills the row; a text cannot be encoded, or has a token that the model lacks.
        """
        return [_checked(number, row).ids for number, row in enumerate(self.encode_each(texts), start=1)]

    def encode_each(self, texts: Sequence[str]) -> list[EncodedText | Fault]:
        """Return the tokens of each text, or why it has none; see encode.

        Raises:
            DataError: the template alone fills the whole row.
        """
        if self._mask is not None:
            texts = [text.replace(self._mask, " ") for text in texts]
        kept = [unless_refused(self._beginning, text) or "" for text in texts]
        prompts = [self._template.replace(TEXT_FIELD, text) for text in kept]
        rows: list[EncodedText | Fault] = []
        for text, part, encoding in zip(texts, kept, encode_each(self._tokenizer, prompts), strict=True):
            if encoding is None or (text and not part):
                rows.append(REFUSED)
                continue
            fits = len(encoding.ids) <= self._task.max_tokens
            ids = encoding.ids if fits else self._encode_cut(part)
            unknown = unknown_token(ids, self._tokenizer, self._vocab_size)
            is_cut = len(part) < len(text)
            rows.append(unknown or (EncodedText(ids, is_cut, is_cut or not fits) if ids else NO_TOKENS))
        return rows

    def _beginning(self, text: str) -> str:
        return beginning(text, self._task.max_tokens, lambda part: _spans(self._tokenizer, part))

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
    """Token ids of a prompt and its completion, and the index of the first token to predict (at least 1).

    ``is_cut`` and ``is_short``: see EncodedText.
    """

    ids: list[int]
    start: int
    is_cut: bool = False
    is_short: bool = False

    @property
    def predicted(self) -> range:
        """The indices of the tokens to predict."""
        return range(self.start, len(self.ids))


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
            DataError: a row has no token that could be predicted, cannot be encoded, or has one that the model lacks.
        """
        return [_checked(number, row) for number, row in enumerate(self.encode_each(rows), start=1)]

    def encode_each(self, rows: Sequence[Completion]) -> list[EncodedCompletion | Fault]:
        """Return the tokens of each row, or why it cannot be used; see encode."""
        n_tokens = self._task.max_tokens
        prompts = [unless_refused(self._ending, row.prompt) for row in rows]
        completions = [
            unless_refused(lambda text: beginning(text, n_tokens, self._spans), row.completion) for row in rows
        ]
        texts = [(prompt or "") + (completion or "") for prompt, completion in zip(prompts, completions, strict=True)]
        encoded: list[EncodedCompletion | Fault] = []
        parts = zip(rows, prompts, completions, encode_each(self._tokenizer, texts), strict=True)
        for row, prompt, completion, encoding in parts:
            if encoding is None or prompt is None or completion is None:
                encoded.append(REFUSED)
                continue
            first, ids = _without_specials(encoding)
            offsets = encoding.offsets[len(first) : len(first) + len(ids)]
            at = next((index for index, (_, end) in enumerate(offsets) if end > len(prompt)), len(ids))
            is_cut = len(prompt) < len(row.prompt) or len(completion) < len(row.completion)
            fitted = self._fit(first, ids[:at], ids[at:])
            result = replace(fitted, is_cut=is_cut, is_short=is_cut or fitted.is_short)
            unknown = unknown_token(result.ids, self._tokenizer, self._vocab_size)
            encoded.append(unknown or (result if result.start < len(result.ids) else NOTHING_TO_PREDICT))
        return encoded

    def encode_dialogues(self, rows: Sequence[Dialogue]) -> list[EncodedDialogue | Fault]:
        """Return the tokens of each rendered conversation, or why it cannot be used."""
        first = _without_specials(self._tokenizer.encode("a"))[0]
        return encode_dialogues(self._tokenizer, rows, first, self._task.max_tokens, self._vocab_size)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, with room for one more; a long prompt loses its beginning.

        Raises:
            DataError: the prompt cannot be encoded, or has a token that the model lacks.
        """
        encoding = unless_refused(lambda text: self._tokenizer.encode(self._ending(text)), prompt)
        if encoding is None:
            raise _error(1, REFUSED)
        first, ids = _without_specials(encoding)
        room = self._task.max_tokens - 1 - len(first)
        kept = first + ids[max(0, len(ids) - room) :]
        unknown = unknown_token(kept, self._tokenizer, self._vocab_size)
        if unknown is not None:
            raise _error(1, unknown)
        return kept

    def encode_rendered(self, text: str) -> list[int]:
        """Return the tokens of a text that holds its special tokens already, such as a rendered conversation.

        Nothing is cut: the beginning of a conversation gives the others their meaning.

        Raises:
            DataError: the text leaves no room for one more token, cannot be encoded, or has one that the model lacks.
        """
        room = self._task.max_tokens - 1
        ids = self._whole(text, is_rendered=True)
        if len(ids) > room:
            raise DataError(
                f"the conversation is {len(ids)} tokens long: with one to answer, the bundle has room for {room}",
                "leave out its oldest messages, or export with a larger --max-tokens",
                facts="a conversation is too long",
            )
        return ids

    def encode_whole(self, text: str, positions: int, *, is_rendered: bool) -> list[int]:
        """Return all tokens of a prompt that is continued with a cache, however long the rows are that train.

        Of a text that is far longer than these, the beginning alone is tokenised.

        Args:
            text: the prompt.
            positions: the most tokens that the model has positions for; one of them is for the token to come.
            is_rendered: whether the text holds its special tokens already.

        Raises:
            DataError: the text leaves no room for one more token, cannot be encoded, or has one that the model lacks.
        """
        part = unless_refused(lambda whole: beginning(whole, positions, self._spans), text) or text
        ids = self._whole(part, is_rendered=is_rendered)
        is_cut = len(part) < len(text)
        if is_cut and len(ids) < 2 * positions:  # a word without an end: its last tokens may be others in the whole
            ids, is_cut = self._whole(text, is_rendered=is_rendered), False
        if len(ids) >= positions:
            length = f"{'more than ' * is_cut}{len(ids)} tokens long"
            raise DataError(
                f"the prompt is {length}: the model has {positions} positions, and one is for an answer",
                "give a shorter prompt",
                facts="a prompt is longer than the model's positions",
            )
        return ids

    def _whole(self, text: str, *, is_rendered: bool) -> list[int]:
        """Return the tokens of a text; without the special tokens that the tokenizer would put behind it."""
        encoding = unless_refused(lambda whole: self._tokenizer.encode(whole, add_special_tokens=not is_rendered), text)
        if encoding is None:
            raise _error(1, REFUSED)
        ids = encoding.ids
        if not is_rendered:
            first, own = _without_specials(encoding)
            ids = first + own
        unknown = unknown_token(ids, self._tokenizer, self._vocab_size)
        if unknown is not None:
            raise _error(1, unknown)
        return list(ids)

    def _ending(self, text: str) -> str:
        return ending(text, self._task.max_tokens, self._spans)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return _spans(self._tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _fit(self, first: list[int], prompt: list[int], completion: list[int]) -> EncodedCompletion:
        room = self._task.max_tokens - len(first)
        if self._task.eos_token_id is not None and completion:
            completion = [*completion, self._task.eos_token_id]
        is_short = len(prompt) + len(completion) > room
        of_prompt, of_completion = kept_tokens(len(prompt), len(completion), room)
        prompt, completion = prompt[len(prompt) - of_prompt :], completion[:of_completion]
        start = len(first) + len(prompt)
        return EncodedCompletion(first + prompt + completion, max(1, start), is_short=is_short)


def _spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
    return spans


def _checked(number: int, row: RowT | Fault) -> RowT:
    if isinstance(row, Fault):
        raise _error(number, row)
    return row


def _error(number: int, fault: Fault) -> DataError:
    facts = f"row {number} cannot be used"
    return DataError(f"{facts}: {fault.what}", "correct the row, or leave it out", facts=facts)


def _without_specials(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Return the special tokens before a text, and the tokens of the text itself."""
    inside = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    begin, end = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
    return encoding.ids[:begin], encoding.ids[begin:end]
