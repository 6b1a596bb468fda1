"""What an exported bundle says of the least versions that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxruntime
import pytest
import tokenizers
from onnx import TensorProto, helper

from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.bundle.needs import is_older
from export.bundle.least_versions import (
    DEFAULT_DOMAIN,
    LEAST_ONNXRUNTIME,
    ONNXRUNTIME_READS,
    formats_of,
    least_onnxruntime,
    least_tokenizers,
)

WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def _graph(path: Path, opset: int, ir_version: int) -> Path:
    tensor = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [tensor("x", TensorProto.FLOAT, [1])],
        [tensor("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def test_a_bundle_needs_what_its_graphs_say(tiny_export: Any) -> None:
    bundle = tiny_export("bert")
    needs = bundle.manifest.needs
    assert needs is not None
    graphs = [onnx.load(bundle.file(graph.file), load_external_data=False) for graph in bundle.manifest.graphs]
    assert needs.ir_version == max(graph.ir_version for graph in graphs)
    used = [opset.version for graph in graphs for opset in graph.opset_import if not opset.domain]
    assert needs.opsets[DEFAULT_DOMAIN] == max(used)
    assert not is_older(onnxruntime.__version__, needs.runtimes["onnxruntime"])
    assert not is_older(tokenizers.__version__, needs.tokenizers)
    assert set(needs.runtimes) == {"onnxruntime"}


def test_a_manifest_without_needs_stays_what_it_was(tiny_export: Any) -> None:
    manifest = tiny_export("bert").manifest
    old = msgspec.structs.replace(manifest, needs=None)
    document = json.loads(encode_manifest(manifest))
    del document["needs"]
    assert json.loads(encode_manifest(old)) == document
    assert decode_manifest(encode_manifest(old)).needs is None
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_formats_are_the_highest_of_all_graphs(tmp_path: Path) -> None:
    paths = [_graph(tmp_path / "a", 18, 10), _graph(tmp_path / "b", 21, 8)]
    assert formats_of(iter(paths)) == (10, {DEFAULT_DOMAIN: 21})


@pytest.mark.parametrize(
    ("opset", "ir_version", "least"),
    [(13, 7, LEAST_ONNXRUNTIME), (21, 10, "1.18"), (22, 10, "1.21"), (18, 11, "1.23"), (24, 10, "1.24")],
)
def test_the_least_onnxruntime_reads_opset_and_ir_version(opset: int, ir_version: int, least: str) -> None:
    assert least_onnxruntime(ir_version, {DEFAULT_DOMAIN: opset, "com.microsoft": 1}) == least


def test_what_is_beyond_the_table_needs_the_installed_onnxruntime() -> None:
    assert not is_older(least_onnxruntime(99, {DEFAULT_DOMAIN: 18}), ONNXRUNTIME_READS[-1][0])


def test_the_installed_onnxruntime_reads_what_the_table_says(tmp_path: Path) -> None:
    for release, opset, ir_version in ONNXRUNTIME_READS:
        if not is_older(onnxruntime.__version__, release):
            path = _graph(tmp_path / release, opset, ir_version)
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_tokenizer_needs_what_its_parts_do() -> None:
    assert least_tokenizers({"model": WORDS, "normalizer": {"type": "NFC"}, "decoder": None}) == "0.20"
    fixed = {"type": "FixedLength", "length": 3}
    assert least_tokenizers({"model": WORDS, "pre_tokenizer": fixed}) == "0.21.2"
    nested = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, fixed]}
    assert least_tokenizers({"model": WORDS, "pre_tokenizer": nested}) == "0.21.2"


def test_a_part_that_nobody_knows_needs_the_installed_tokenizers() -> None:
    least = least_tokenizers({"model": WORDS, "decoder": {"type": "Invented"}})
    assert not is_older(tokenizers.__version__, least)
    assert not is_older(least, tokenizers.__version__.partition("+")[0].partition("rc")[0])
