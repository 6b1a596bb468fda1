"""The decode graph of every causal architecture against PyTorch: logits at every place, and tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from decoding import complete, eager_tokens, without_decode
from peft import PeftModel
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.decode import DECODE_FILE, DECODE_GRAPH_FILE, Decode, find_decode
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from edge_runtime.engines.sampling import Generation
from export.bundle.least_versions import formats_of
from export.errors import ExportError
from server.cli import main as server_main
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.onnx_decode import OnnxDecoder
    from edge_runtime.values import FloatVector

TASK = "causal-lm"
TOLERANCE = 1e-5
POSITIONS = 64
"""Positions of the tiny models; their sliding windows have 8 tokens."""
CASES = [
    ("qwen3-sliding", "B"),
    *[
        pytest.param(kind, train, marks=pytest.mark.slow)
        for kind, train in (
            *(("opt", "AB"), ("qwen2-sliding", "full")),
            *((kind, "B") for kind in ("llama", "llama-wide", "qwen2", "qwen2-tied", "qwen3", "opt-narrow")),
            *((kind, "full") for kind in ("llama-tied", "opt", "qwen3")),
        )
    ],
]
READS = ([POSITIONS], [1] * POSITIONS, [5, *[1] * 20, 39], [20, 20, 24], [1, 63])
"""How many tokens are read at once, one after another."""


def adapter_of(bundle: Bundle) -> FloatVector:
    return golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(bundle.manifest.golden, seed=77))


def decode_of(bundle: Bundle) -> Decode:
    found = find_decode(bundle.path, bundle.manifest)
    assert isinstance(found, Decode)
    return found


def decoder_of(bundle: Bundle) -> OnnxDecoder:
    return Engines(threads=1).make_decoder(bundle, decode_of(bundle))


def eager_model(bundle: Bundle, kind: str, folder: Path) -> Any:
    """The usual Auto class, with PEFT where an adapter is trained, and with what the test's adapter says."""
    write_finished(bundle, adapter_of(bundle), folder, {})
    if bundle.manifest.train == "full":
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    base = AutoModelForCausalLM.from_pretrained(bundle.path.parents[1] / "models" / kind)
    return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize(("kind", "train"), CASES)
def test_with_a_cache_logits_and_tokens_are_pytorchs(
    tiny_export: Callable[..., Bundle], kind: str, train: str, tmp_path: Path
) -> None:
    """Logits after every token, however the text is read; greedy tokens with and without a cache, and by generate."""
    bundle = tiny_export(kind, task=TASK, train=train)
    theta, model, decoder = adapter_of(bundle), eager_model(bundle, kind, tmp_path / "adapter"), decoder_of(bundle)
    row = np.random.Generator(np.random.PCG64(9)).integers(3, 250, POSITIONS).tolist()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([row])).logits[0].numpy()
    assert np.ptp(wanted) > 0.1  # the comparison is about something
    for reads in READS:
        decoder.start(theta)
        for count in reads:
            logits = decoder.read(row[decoder.tokens_read : decoder.tokens_read + count])
            assert np.abs(logits - wanted[decoder.tokens_read - 1]).max() < TOLERANCE
    prompts, wish = ["the film was", "a very long", "it"], Generation(12)
    cached = complete(bundle, theta, prompts, wish)
    assert all(one.cache_bytes is not None for one in cached)
    uncached = complete(without_decode(bundle), theta, prompts, wish)
    assert [one.tokens for one in uncached] == [one.tokens for one in cached]
    for one in cached:
        decoder_ids = one_ids(bundle, one.prompt)
        assert one.tokens == eager_tokens(model, decoder_ids, 12, bundle.manifest.task.eos_token_id)
        assert one.prompt_tokens == len(decoder_ids)


def one_ids(bundle: Bundle, prompt: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer_file))).encode(prompt).ids
    return ids


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("opt", task=TASK, train="AB")


@pytest.mark.slow
def test_another_adapter_gives_other_logits(bundle: Bundle) -> None:
    """The adapter is an input of the graph: a decoder that is loaded once follows what training does."""
    decoder, theta = decoder_of(bundle), adapter_of(bundle)
    found = []
    for adapter in (bundle.initial_adapter(), theta, bundle.initial_adapter()):
        decoder.start(adapter)
        found.append(decoder.read([5, 6, 7]).copy())
    assert np.abs(found[1] - found[0]).max() > 1e-3
    assert (found[2] == found[0]).all()


def test_devices_of_before_use_the_bundle_as_ever(bundle: Bundle) -> None:
    """The manifest has no word of the graph but two files, and needs no newer ONNX Runtime."""
    table = json.loads((bundle.path / "manifest.json").read_bytes())
    described = json.dumps({**table, "files": []})
    assert DECODE_FILE not in described
    assert DECODE_GRAPH_FILE not in described
    assert {entry["path"] for entry in table["files"]} >= {DECODE_FILE, DECODE_GRAPH_FILE}
    manifest: Manifest = bundle.manifest
    assert manifest.needs is not None
    decode_format = formats_of(iter([bundle.file(DECODE_GRAPH_FILE)]))
    assert decode_format == (manifest.needs.ir_version, manifest.needs.opsets)
    check_golden(without_decode(bundle))


def test_the_graph_is_small_and_names_no_place_of_this_machine(bundle: Bundle) -> None:
    """Weights are inputs; the converter's notes, which hold paths, are gone."""
    data = bundle.file(DECODE_GRAPH_FILE).read_bytes()
    assert len(data) < 100_000
    assert str(bundle.path.parents[1]).encode() not in data
    graph = onnx.load_from_string(data).graph
    assert len(graph.input) == len(decode_of(bundle).graph.inputs)


def test_a_decode_graph_that_computes_something_else_is_found(bundle: Bundle, tmp_path: Path) -> None:
    """The golden vectors go through it: a device that would continue wrongly refuses the bundle."""
    import shutil
    from dataclasses import replace

    from edge_runtime.errors import BundleError

    copy = replace(bundle, path=shutil.copytree(bundle.path, tmp_path / "bundle"))
    assert check_golden(copy).decode <= bundle.manifest.golden.tolerance
    graph = onnx.load(copy.file(DECODE_GRAPH_FILE))
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]
    onnx.save(graph, copy.file(DECODE_GRAPH_FILE))
    with pytest.raises(BundleError, match="with a cache"):
        check_golden(copy)


@pytest.mark.slow
def test_export_says_what_it_costs_and_leaves_it_out(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir, out = bundle.path.parents[1] / "models" / "opt", tmp_path / "bundle"
    export = ["export", str(model_dir), "--split", "1", "--format", "json", "--out", str(out), "--force"]
    assert server_main([*export, "--task", "classify-head", "--labels", "a,b", "--decode"]) == ExportError.exit_code
    assert "continues no text" in capsys.readouterr().err
    assert server_main([*export, "--task", TASK, "--max-tokens", "16", "--no-decode"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["decode"], said["parity_decode"]) == (None, None)
    assert not (out / DECODE_FILE).exists()
    assert server_main([*export, "--task", TASK, "--max-tokens", "16"]) == 0
    said = json.loads(capsys.readouterr().out)
    sizes = [(out / name).stat().st_size for name in (DECODE_FILE, DECODE_GRAPH_FILE)]
    # 3 layers, keys and values, hidden size 32, 4 bytes each
    assert (said["decode"]["size_bytes"], said["decode"]["cache_bytes_a_token"]) == (sum(sizes), 3 * 2 * 32 * 4)
    assert said["parity_decode"] <= TOLERANCE
    assert server_main(["bundle", "show", str(out), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["decode"] == said["decode"]
    assert server_main(["bundle", "show", str(out)]) == 0
    assert "768 bytes of cache a token, 64 positions" in capsys.readouterr().out
    assert server_main(["bundle", "verify", str(out)]) == 0
    assert "(with a cache " in capsys.readouterr().out
