"""Tokens: templates kept, long rows cut at the end of their text, batches padded to their own longest row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_runtime.data.batch import pad
from edge_runtime.data.tokens import TextEncoder
from edge_runtime.errors import BundleError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_short_rows_are_the_tokenizers_own(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.file(tiny_bundle.manifest.tokenizer_file)
    texts = ["a very good film", "bad", "Never BORING"]
    expected = [encoding.ids for encoding in Tokenizer.from_file(str(path)).encode_batch(texts)]
    assert TextEncoder(path, tiny_bundle.manifest.task).encode(texts) == expected


def test_long_rows_keep_template_and_special_tokens(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="classify-prompt")
    path = bundle.file(bundle.manifest.tokenizer_file)
    task = msgspec.structs.replace(bundle.manifest.task, max_tokens=12)
    (ids,) = TextEncoder(path, task).encode(["good film " * 50])
    text = Tokenizer.from_file(str(path)).decode(ids)
    assert len(ids) <= 12
    assert text.startswith("good film")
    assert text.endswith(" It was")


def test_long_rows_of_an_encoder_keep_their_last_special_token(tiny_bundle: Bundle) -> None:
    task = msgspec.structs.replace(tiny_bundle.manifest.task, max_tokens=6)
    encoder = TextEncoder(tiny_bundle.file(tiny_bundle.manifest.tokenizer_file), task)
    (ids,) = encoder.encode(["good bad " * 20])
    assert len(ids) == 6
    assert (ids[0], ids[-1]) == (2, 3)


def test_a_template_that_fills_the_row_is_an_error(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="classify-prompt")
    task = msgspec.structs.replace(bundle.manifest.task, max_tokens=2)
    with pytest.raises(DataError, match="template"):
        TextEncoder(bundle.file(bundle.manifest.tokenizer_file), task).encode(["good film"])


def test_a_broken_tokenizer_is_an_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot read"):
        TextEncoder(tmp_path / "tokenizer.json", tiny_bundle.manifest.task)


def test_padding() -> None:
    batch = pad([[5, 6, 7], [8]], [1, 0], pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [1, 0]
    assert {a.dtype for a in (batch.input_ids, batch.attention_mask, batch.labels)} == {np.dtype(np.int64)}
