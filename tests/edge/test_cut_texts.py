"""Long texts are cut by characters before they are tokenised, and their tokens are those of the whole text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edge_runtime.bundle.manifest import Task
from edge_runtime.data import cut
from edge_runtime.data.cut import MOST_CHARACTERS, beginning, ending
from edge_runtime.data.examples import Completion
from edge_runtime.data.problems import Fault
from edge_runtime.data.tokens import CompletionEncoder, EncodedText, TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = [
    "the film was very good",
    "a bad, bad film: 3 of 10!",
    "das war ein guter Film",
    "映画はとても良かった",
    "x" * 40,
] * 20


def word_piece() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)


def byte_level() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)


def unigram() -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )


def without_words() -> tuple[Tokenizer, trainers.Trainer]:
    """As Llama's: trained on words, but it does not divide a text into them; spaces are characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)


@pytest.fixture(scope="module", params=[word_piece, byte_level, unigram, without_words])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer, trainer = request.param()
    tokenizer.train_from_iterator(CORPUS, trainer)
    if request.param is without_words:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


PIECES = [
    "the ",
    "film",
    " ",
    "   ",
    "\n",
    "very bad, ",
    "映画",
    "は良",
    "x",
    "xyz" * 50,
    "é",
    "e\u0301",
    "!?",
    "10 ",
    "\t",
    "z" * 101,
]
Parts = list[tuple[str, int]]
PARTS = st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 2000)), min_size=1, max_size=4)
"""Pieces of a text, each with the number of characters that its repetitions fill."""
ENDLESS = [(" ", 560), ("ab", 4000)]  # a word that is one token, of which a cut too near would make many
BACK_TO_FRONT = [("ab", 4000), (" ", 560)]


def text_of(parts: Parts) -> str:
    return "".join(piece * max(1, size // len(piece)) for piece, size in parts)


@settings(max_examples=30, deadline=None)
@given(parts=PARTS, max_tokens=st.integers(4, 20))
@example(parts=ENDLESS, max_tokens=8)
@example(parts=[("the film was very good. ", 20_000)], max_tokens=20)
@example(parts=[("x", 90), (" ", 1), ("y", 5000)], max_tokens=4)
def test_a_cut_text_has_the_tokens_of_the_whole_one(tokenizer_file: Path, parts: Parts, max_tokens: int) -> None:
    encoder = TextEncoder(tokenizer_file, Task("classify-head", ["bad", "good"], None, None, None, max_tokens, 0))

    def tokens() -> list[int] | Fault:
        (found,) = encoder.encode_each([text_of(parts)])
        return found if isinstance(found, Fault) else found.ids

    found = tokens()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "CHARACTERS_PER_TOKEN", 10**9)
        assert found == tokens()


@settings(max_examples=30, deadline=None)
@given(prompt=PARTS, completion=PARTS, max_tokens=st.integers(4, 20))
@example(prompt=BACK_TO_FRONT, completion=ENDLESS, max_tokens=8)
@example(prompt=[("x", 1665)], completion=[("x", 10)], max_tokens=4)  # how "xxx" is divided depends on all of it
def test_a_cut_completion_has_the_tokens_of_the_whole_one(
    tokenizer_file: Path, prompt: Parts, completion: Parts, max_tokens: int
) -> None:
    encoder = CompletionEncoder(tokenizer_file, Task("causal-lm", [], None, None, None, max_tokens, 0, eos_token_id=1))
    row = Completion(text_of(prompt), text_of(completion))

    def tokens() -> tuple[list[int], int] | Fault:
        (found,) = encoder.encode_each([row])
        return found if isinstance(found, Fault) else (found.ids, found.start)

    found, found_prompt = tokens(), encoder.encode_prompt(row.prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "CHARACTERS_PER_TOKEN", 10**9)
        assert found == tokens()
        assert found_prompt == encoder.encode_prompt(row.prompt)


def test_a_text_of_20_million_characters_is_cut_and_counted(tokenizer_file: Path) -> None:
    encoder = TextEncoder(tokenizer_file, Task("classify-head", ["bad", "good"], None, None, None, 64, 0))
    long, short = encoder.encode_each(["very good film " * 1_333_334, "a bad film"])
    assert isinstance(long, EncodedText)
    assert isinstance(short, EncodedText)
    assert (long.is_cut, short.is_cut) == (True, False)
    assert long.ids == encoder.encode(["very good film " * 100])[0]


@pytest.mark.parametrize("keep", [beginning, ending])
def test_however_few_tokens_a_text_gives_the_tokenizer_never_sees_all_of_it(keep: object) -> None:
    seen: list[int] = []

    def one_token(text: str) -> list[tuple[int, int]]:
        seen.append(len(text))
        return [(0, len(text))]

    assert callable(keep)
    assert len(keep("x" * 20_000_000, 64, one_token)) == MOST_CHARACTERS
    assert max(seen) < MOST_CHARACTERS
