"""Continuing prompts on the device: where it ends, what it says, what it refuses, and bundles without the graph."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from decoding import complete, without_decode

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.base import Base
from edge_runtime.bundle.decode import DECODE_FILE, Decode, NoDecode, encode_decode, find_decode
from edge_runtime.bundle.folder import Bundle, verify_loaded
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.continuation import Continuer, generation_facts
from edge_runtime.engines.onnx_decode import CHUNK_TOKENS, OnnxDecoder
from edge_runtime.engines.sampling import Generation
from edge_runtime.errors import BundleError, ConfigError, DataError, TrainingError

ENGINES = Engines(threads=1)
POSITIONS = 64
PROMPT = "the film was"


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("llama", task="causal-lm", levels=(1, 3))


def decode_of(bundle: Bundle) -> Decode:
    found = find_decode(bundle.path, bundle.manifest)
    assert isinstance(found, Decode)
    return found


def with_end(bundle: Bundle, token: int) -> Bundle:
    """Return the bundle with another end-of-text token."""
    task = msgspec.structs.replace(bundle.manifest.task, eos_token_id=token)
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, task=task))


def tokens_of(bundle: Bundle, generation: Generation, prompt: str = PROMPT) -> list[int]:
    return complete(bundle, bundle.initial_adapter(), [prompt], generation)[0].tokens


# -- where it ends --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_stops_at_the_end_of_the_text_with_and_without_a_cache(bundle: Bundle) -> None:
    tokens = tokens_of(bundle, Generation(12))
    assert len(tokens) == 12
    at = next(index for index in range(3, 12) if tokens[index] not in tokens[:index])
    ending = with_end(bundle, tokens[at])
    for one in (ending, without_decode(ending)):
        (made,) = complete(one, one.initial_adapter(), [PROMPT], Generation(12))
        assert (made.tokens, made.is_ended) == (tokens[:at], True)


def test_it_stops_at_the_last_position(bundle: Bundle) -> None:
    """Rows that train have at most 32 tokens here; the cache goes on to the model's 64 positions."""
    (cached,) = complete(bundle, bundle.initial_adapter(), [PROMPT], Generation(500))
    assert cached.prompt_tokens + len(cached.tokens) == POSITIONS
    older = without_decode(bundle)
    (uncached,) = complete(older, older.initial_adapter(), [PROMPT], Generation(500))
    assert uncached.prompt_tokens + len(uncached.tokens) == bundle.manifest.task.max_tokens == 32
    assert uncached.tokens == cached.tokens[: len(uncached.tokens)]


def test_a_prompt_longer_than_the_models_positions_is_an_error(bundle: Bundle) -> None:
    """Whole prompts are read, also those longer than rows that train; without a cache they lose their beginning."""
    word = " very"  # one token
    assert len(tokens_of(bundle, Generation(5), word * (POSITIONS - 1))) == 1
    with pytest.raises(DataError, match=f"is {POSITIONS} tokens long: the model has {POSITIONS} positions"):
        tokens_of(bundle, Generation(5), word * POSITIONS)
    assert tokens_of(without_decode(bundle), Generation(5), word * POSITIONS)


def test_prompts_are_read_in_chunks_and_the_cache_is_dropped_after_them(bundle: Bundle) -> None:
    decode = decode_of(bundle)
    longer = msgspec.structs.replace(decode, positions=10_000)
    decoder = ENGINES.make_decoder(bundle, longer)
    ids = np.random.Generator(np.random.PCG64(2)).integers(3, 250, 2 * CHUNK_TOKENS + 5).tolist()
    decoder.start(bundle.initial_adapter())
    chunked = decoder.read(ids)
    assert decoder.tokens_read == len(ids)
    decoder.start(bundle.initial_adapter())
    for token in ids:
        alone = decoder.read([token])
    assert np.abs(chunked - alone).max() < 1e-5
    with pytest.raises(DataError, match="more than the 64 positions"):
        ENGINES.make_decoder(bundle, decode).read(ids)


@pytest.mark.parametrize("is_rendered", [False, True])
def test_a_prompt_of_megabytes_is_refused_by_its_beginning(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, is_rendered: bool
) -> None:
    encoder = CompletionEncoder(bundle.file(bundle.manifest.tokenizer_file), bundle.manifest.task)
    tokenised: list[int] = []

    class Counting:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def encode(self, text: str, **options: Any) -> Any:
            tokenised.append(len(text))
            return self._tokenizer.encode(text, **options)

    monkeypatch.setattr(encoder, "_tokenizer", Counting(encoder._tokenizer))
    with pytest.raises(DataError, match=f"is more than .* tokens long: the model has {POSITIONS} positions"):
        encoder.encode_whole(" very" * 1_000_000, POSITIONS, is_rendered=is_rendered)
    assert sum(tokenised) < 10_000
    tokenised.clear()
    assert len(encoder.encode_whole(" very" * 60, POSITIONS, is_rendered=is_rendered)) >= 60
    assert len(tokenised) == 1


def test_the_memory_of_a_text_that_fails_is_given_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[OnnxDecoder] = []

    def keep(engines: Engines, *given: Any) -> OnnxDecoder:
        made.append(make_decoder(engines, *given))
        return made[0]

    make_decoder = Engines.make_decoder
    monkeypatch.setattr(Engines, "make_decoder", keep)
    continuer = Continuer(bundle, ENGINES)
    read: list[int] = []

    def fail(*_: Any) -> int:
        read.append(made[0].tokens_read)
        raise TrainingError("the runtime failed", "")

    monkeypatch.setattr("edge_runtime.engines.continuation.pick_token", fail)
    with pytest.raises(TrainingError, match="the runtime failed"):
        continuer.complete(bundle.initial_adapter(), [PROMPT], Generation(4))
    assert read[0] > 0
    assert made[0].tokens_read == 0


def test_a_prompt_without_tokens_is_the_askers_mistake(bundle: Bundle) -> None:
    for one in (bundle, without_decode(bundle)):
        with pytest.raises(DataError, match="the prompt '' has no tokens"):
            complete(one, one.initial_adapter(), [""], Generation(4))


def test_a_quantised_base_is_said_to_have_none(bundle: Bundle) -> None:
    manifest = without_decode(bundle).manifest
    found = find_decode(bundle.path, manifest)
    assert isinstance(found, NoDecode)
    assert "covey export --decode" in found.reason
    quantised = msgspec.structs.replace(
        manifest, base=Base("int8", 32, "float32", 1, "golden", 1.0, 1.0, 1e-3, 1.0, 1e-3)
    )
    found = find_decode(bundle.path, quantised)
    assert isinstance(found, NoDecode)
    assert found.reason == "the bundle has no decode graph: there is none for a quantised base"


# -- how it draws ---------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_text_and_each_text_its_own_draws(bundle: Bundle) -> None:
    drawn = [tokens_of(bundle, Generation(12, 1.0, 0.95, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    theta, wish = bundle.initial_adapter(), Generation(12, 1.0, 0.95, 1)
    together = [one.tokens for one in complete(bundle, theta, [PROMPT, PROMPT, "it"], wish)]
    assert together[0] == drawn[0] != together[1]
    assert complete(bundle, theta, [PROMPT, PROMPT], wish)[1].tokens == together[1]


def test_without_a_decode_graph_only_the_likeliest_tokens_follow(bundle: Bundle) -> None:
    older = without_decode(bundle)
    assert tokens_of(older, Generation(8)) == tokens_of(bundle, Generation(8))
    with pytest.raises(DataError, match="needs the logits of the next token: the bundle has no decode graph"):
        tokens_of(older, Generation(8, temperature=1.0))


def test_a_classifier_does_not_continue(tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="does not continue"):
        complete(tiny_bundle, tiny_bundle.initial_adapter(), ["it was"], Generation(3))


# -- what it says ---------------------------------------------------------------------------------------------------


def test_it_says_tokens_a_second_and_the_caches_bytes(bundle: Bundle) -> None:
    ticks = itertools.count()
    continuer = Continuer(bundle, ENGINES, clock=lambda: float(next(ticks)))
    made = continuer.complete(bundle.initial_adapter(), [PROMPT, "it"], Generation(5))
    facts = generation_facts(made, Generation(5), continuer.why_not_cached)
    # A tick for each token: one for the first token of each prompt, then four.
    assert (facts["seconds"], facts["first_token_seconds"], facts["tokens_per_second"]) == (10.0, 1.0, 1.0)
    assert (facts["new_tokens"], facts["ended"]) == (10, [False, False])
    assert (facts["cached"], facts["why_not_cached"]) == (True, None)
    # 3 layers, keys and values of two heads of 8, 4 bytes each; the last token is not read.
    assert decode_of(bundle).cache_bytes_a_token == 3 * 2 * 2 * 8 * 4
    assert facts["cache_bytes"] == (made[0].prompt_tokens + 4) * decode_of(bundle).cache_bytes_a_token


def test_memory_for_the_cache_is_asked_for_before_anything_runs(bundle: Bundle) -> None:
    theta, tokens = bundle.initial_adapter(), 5 + 8
    needed = 2 * tokens * decode_of(bundle).cache_bytes_a_token
    made = Continuer(bundle, ENGINES, lambda: needed).complete(theta, [PROMPT], Generation(8))
    assert made[0].prompt_tokens == 5
    with pytest.raises(TrainingError, match=f"a text of {tokens} tokens needs {needed} bytes"):
        Continuer(bundle, ENGINES, lambda: needed - 1).complete(theta, [PROMPT], Generation(8))


def test_executorch_continues_without_a_cache_and_says_so(bundle: Bundle) -> None:
    found = Engines("executorch").find_decode(bundle)
    assert isinstance(found, NoDecode)
    assert "for onnxruntime only, and the engine is executorch" in found.reason


def test_the_command_says_how_it_went(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict = ["predict", "--bundle", str(bundle.path), "--max-new-tokens", "6", "--threads", "1"]
    assert edge_cli.main([*predict, "--format", "json", PROMPT]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["generation"]["new_tokens"], said["generation"]["cached"]) == (6, True)
    assert "tokens a second after the first, with a cache of " in err
    drawn = [*predict, "--temperature", "0.9", "--top-p", "0.9", "--seed", "5"]
    texts = []
    for _ in range(2):
        assert edge_cli.main([*drawn, PROMPT]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(PROMPT)
    assert edge_cli.main([*predict, "--top-p", "0.5", PROMPT]) == ConfigError.exit_code
    assert "without a temperature nothing is drawn" in capsys.readouterr().err
    older = shutil.copytree(bundle.path, tmp_path / "older")
    remove_decode(older)
    assert edge_cli.main(["predict", "--bundle", str(older), PROMPT]) == 0
    assert "without a cache: the bundle has no decode graph" in capsys.readouterr().err


def test_flags_about_drawing_are_not_for_classifiers(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cli.main(["predict", "--bundle", str(tiny_bundle.path), "--seed", "0", "a"]) == ConfigError.exit_code
    assert "--seed: the bundle's task is classify-head" in capsys.readouterr().err


# -- decode.json ----------------------------------------------------------------------------------------------------


def remove_decode(folder: Path) -> None:
    """Turn a bundle's folder into what an export without a decode graph writes."""
    path = folder / "manifest.json"
    table = json.loads(path.read_bytes())
    table["files"] = [entry for entry in table["files"] if "decode" not in entry["path"]]
    path.write_text(json.dumps(table))
    (folder / DECODE_FILE).unlink()
    (folder / "graphs/decode.onnx").unlink()


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return replace(bundle, path=shutil.copytree(bundle.path, tmp_path / "bundle"))


def test_a_newer_description_is_left_alone(copy: Bundle) -> None:
    """The bundle trains and predicts as one without the graph."""
    path = copy.file(DECODE_FILE)
    path.write_text(json.dumps({"format_version": 2, "something": "else"}))
    found = find_decode(copy.path, copy.manifest)
    assert isinstance(found, NoDecode)
    assert "format version 2, this Covey reads 1" in found.reason
    assert tokens_of(copy, Generation(4)) == tokens_of(without_decode(copy), Generation(4))


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop("positions"),
        lambda table: table.update(positions=1),
        lambda table: table.update(format_version=0),
        lambda table: table.update(unknown=1),
        lambda table: table["graph"].update(file="graphs/none.onnx"),
        lambda table: table["graph"].update(runtime="executorch"),
        lambda table: table["graph"]["outputs"].reverse(),
        lambda table: table["graph"]["outputs"].pop(),
        lambda table: table["graph"].update(inputs=[i for i in table["graph"]["inputs"] if i["role"] != "batch"]),
        lambda table: [tensor.update(shape=[1, 2, 8]) for tensor in table["graph"]["inputs"]],
        lambda table: [tensor.update(shape=["past", 2, "past", 8]) for tensor in table["graph"]["inputs"]],
        lambda table: [tensor.update(role="batch") for tensor in table["graph"]["inputs"]],
    ],
)
def test_a_damaged_description_is_named(copy: Bundle, change: Change) -> None:
    path = copy.file(DECODE_FILE)
    table = json.loads(path.read_bytes())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(BundleError, match=r"decode\.json"):
        decode_of(copy)


def test_files_that_are_missing_or_altered_are_named(copy: Bundle) -> None:
    verify_loaded(copy, "onnxruntime")
    copy.file("graphs/decode.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"graphs/decode\.onnx was altered"):
        verify_loaded(copy, "onnxruntime")
    copy.file(DECODE_FILE).write_bytes(b"no json")
    with pytest.raises(BundleError, match=r"decode\.json was altered"):
        verify_loaded(copy, "onnxruntime")
    with pytest.raises(BundleError, match=r"decode\.json cannot be read"):
        decode_of(copy)
    copy.file(DECODE_FILE).unlink()
    with pytest.raises(BundleError, match=r"decode\.json"):
        decode_of(copy)


def test_what_is_written_is_read(bundle: Bundle) -> None:
    assert bundle.file(DECODE_FILE).read_bytes() == encode_decode(decode_of(bundle))
