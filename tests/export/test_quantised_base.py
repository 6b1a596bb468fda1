"""A quantised base: blocks, graphs that read them, what the bundle says of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from exports import HEAD, export, generic_adapter, model_dir_of
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import finished_folder

from edge_runtime.bundle.base import BITS, BLOCKS, SCALES, ZERO_POINTS
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.manifest import FORMAT_VERSION, PLAIN_VERSION
from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.bundle.memory_need import parameter_bytes
from edge_runtime.bundle.needs import unmet_needs
from edge_runtime.engines.bundle_engine import bind_inputs, frozen_tensors
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter, golden_cases, measure_parity
from edge_runtime.errors import BundleError
from edge_runtime.files.tensor_file import map_tensors
from export.bundle.base_figures import base_notes
from export.errors import ExportError
from export.graphs.block_products import use_blocks
from export.model.blocks import BlockShape, quantise
from server.cli import main

QUANTISED: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"base": "int4", "levels": (1, 3)}),
    ("llama", {"base": "int8", "task": "causal-lm", "levels": (2,)}),
]
MORE: list[tuple[str, dict[str, Any]]] = [
    ("deberta", {"base": "int4", "levels": (3,)}),
    ("opt", {"base": "int4", "task": "classify-prompt", "levels": (3,)}),
    ("mpnet", {"base": "int8"}),
    ("qwen3", {"base": "int4", "task": "classify-prompt"}),
    ("bert", {"base": "int4", "levels": (2, 3), "recompute": True}),
]


@pytest.fixture(params=[*QUANTISED, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)], ids=str)
def bundle(request: pytest.FixtureRequest, tiny_export: Callable[..., Bundle]) -> Bundle:
    kind, options = request.param
    return tiny_export(kind, **options)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([-3.0, 0.0, 3.0]),
)
def test_a_block_is_off_by_what_plain_rounding_is_at_most(
    rows: int, columns: int, bits: int, seed: int, offset: float
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + offset
    blocks = quantise(weight, bits)
    filled = torch.nn.functional.pad(weight, (0, -columns % 32)).reshape(rows, -1, 32)
    errors = torch.nn.functional.pad(blocks.dequantised() - weight, (0, -columns % 32)).reshape(rows, -1, 32)
    steps = (filled.amax(2).clamp(min=0) - filled.amin(2).clamp(max=0)) / (2**bits - 1)
    # Plain rounding of values and zero point is off by a step at most; what is chosen has no larger squared error.
    assert ((errors**2).sum(2) <= 32 * (1.01 * steps) ** 2 + 1e-9).all()
    assert blocks.data.shape == (rows, blocks.shape.blocks, blocks.shape.block_bytes)
    assert blocks.zero_points.shape == (rows, blocks.shape.zero_point_bytes)
    assert torch.equal(quantise(torch.zeros(rows, columns), bits).dequantised(), torch.zeros(rows, columns))


def test_every_graph_is_the_dequantised_model(bundle: Bundle) -> None:
    """check_golden compares with PyTorch eager on the dequantised weights, at the tolerance of float32 bundles."""
    assert bundle.manifest.golden.tolerance == 1e-5
    check_golden(bundle)


def test_weights_are_in_blocks_once_for_all_graphs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    base = manifest.base
    assert base is not None
    tensors = map_tensors(bundle.file(manifest.weights_file))
    names = {name.removesuffix(BLOCKS) for name in tensors if name.endswith(BLOCKS)}
    assert names
    assert not names & tensors.keys()
    assert {n.removesuffix(end) for n in tensors for end in (SCALES, ZERO_POINTS) if n.endswith(end)} == names
    assert sum(tensors[name + BLOCKS].size for name in names) == base.weights * BITS[base.kind] // 8
    for graph in manifest.graphs:
        read = [i for i in graph.inputs if i.source.endswith(BLOCKS)]
        assert read
        assert {i.role for i in read} == {"weight" if graph.kind == "train" else "constant"}
        # The graph's file holds none of them, so that the weights are on the disk and in memory once.
        assert manifest.file(graph.file).size_bytes < 300_000
        model = onnx.load(bundle.file(graph.file), load_external_data=False)
        counted = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
        assert counted >= len(read)


def test_a_gradient_waits_for_the_weight_that_it_passes(tiny_export: Callable[..., Bundle]) -> None:
    """Each weight is dequantised behind the gradient that it is multiplied with, and never for two products."""
    bundle = tiny_export("bert", base="int4", levels=(1, 3))
    graph = onnx.load(bundle.file(bundle.manifest.training_graph(3).file), load_external_data=False).graph
    made = {name: n for n, node in enumerate(graph.node) for name in node.output}
    waits = [node for node in graph.node if node.op_type == "Cast" and node.output[0].endswith("_waits")]
    assert len(waits) > 6
    gradients = [made[name] for name in made if name.endswith("_size")]
    first_forward = min(n for n, node in enumerate(graph.node) if node.op_type == "MatMulNBits")
    loss = made["loss"]
    assert first_forward < loss < min(gradients)
    readers = [n for n in graph.node for name in n.input if name.endswith(("_rows", "_rows_first"))]
    assert all(node.op_type in ("MatMul", "Gemm", "Slice") for node in readers)


def test_the_manifest_says_what_quantising_changed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    base = bundle.manifest.base
    assert base is not None
    assert base.rows == "golden"
    assert 0.5 < base.loss_ratio < 1.5
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    cases = list(golden_cases(bundle))
    engine = Engines(threads=1).make_engine(bundle, bundle.manifest.splits[0])
    losses = []
    for case in cases:
        engine.front_workspace[:] = theta[: engine.front_workspace.size]
        engine.back_workspace[:] = theta[engine.front_workspace.size :]
        losses.append(engine.back(engine.front(case.batch), case.batch))
    assert np.average(losses, weights=[c.batch.loss_terms for c in cases]) == pytest.approx(base.loss, abs=1e-5)
    assert main(["bundle", "show", str(bundle.path)]) == 0
    assert f"{base.kind} in blocks of 32" in capsys.readouterr().out
    assert main(["bundle", "show", str(bundle.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"]["loss_float32"] == base.loss_float32


@pytest.mark.slow
def test_estimates_count_blocks(tiny_export: Callable[..., Bundle]) -> None:
    """A tiny BERT's layers are most of what a training graph binds: at 4 bits and a scale per 32, less than a third."""
    whole, blocks = (tiny_export("bert", levels=(1, 3), base=base).manifest for base in ("float32", "int4"))
    assert parameter_bytes(blocks.training_graph(3)) < 0.5 * parameter_bytes(whole.training_graph(3))
    assert parameter_bytes(blocks.graph("predict")) < 0.6 * parameter_bytes(whole.graph("predict"))
    needed = blocks.training_graph(3).activations
    assert needed is not None
    # The one weight that is dequantised at a time, 64 x 32 float32 in this model: inside a product, and beside one.
    assert needed.first_row > 2 * 4 * 64 * 32 + needed.further_row // 2


@pytest.mark.slow
def test_products_in_int8_are_near_and_say_so(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("bert", base="int4", products="int8")
    assert bundle.manifest.base is not None
    assert bundle.manifest.base.products == "int8"
    parity = check_golden(bundle)
    assert bundle.manifest.golden.tolerance == pytest.approx(2 * max(parity.loss, parity.logits), rel=0.5)
    exact = measure_parity(tiny_export("bert", base="int4", levels=(1, 3)))
    assert exact.loss < 1e-6 <= max(parity.loss, 1e-6)


@pytest.mark.parametrize(("kind", "least"), [("int8", "1.23"), ("int4", "1.18")])
def test_an_older_runtime_is_named(tiny_export: Callable[..., Bundle], kind: str, least: str) -> None:
    options = dict(QUANTISED)["llama" if kind == "int8" else "bert"]
    needs = tiny_export("llama" if kind == "int8" else "bert", **options).manifest.needs
    assert needs is not None
    (unmet,) = unmet_needs(needs, "onnxruntime", {"onnxruntime": "1.17.3"})
    assert unmet.needed == least
    assert "com.microsoft 1" in unmet.because
    assert not unmet_needs(needs, "onnxruntime", {"onnxruntime": least})


def test_blocks_of_another_element_type_are_refused(tiny_export: Callable[..., Bundle]) -> None:
    """Runtimes read memory by its address: bytes in place of floats would be read past their end."""
    bundle = tiny_export("bert", base="int4", levels=(1, 3))
    graph = bundle.manifest.graph("predict")
    scales = next(i for i in graph.inputs if i.source.endswith(SCALES))
    frozen = {
        name: tensor.astype("u1") if name == scales.source else tensor
        for name, tensor in frozen_tensors(bundle).items()
    }
    with pytest.raises(BundleError, match=f"needs {scales.source}, float32 "):
        bind_inputs(graph, frozen, {p.name: np.zeros(p.shape, np.float32) for p in bundle.manifest.parameters})


def test_a_covey_that_knows_no_blocks_says_that_it_is_too_old(tiny_export: Callable[..., Bundle]) -> None:
    """It reads format version 3 alone; a float32 bundle stays of that version, and says nothing of a base."""
    quantised = tiny_export("bert", base="int4", levels=(1, 3)).manifest
    assert quantised.format_version == FORMAT_VERSION == 4
    assert decode_manifest(encode_manifest(quantised)) == quantised
    older = msgspec.structs.replace(quantised, format_version=PLAIN_VERSION)
    with pytest.raises(BundleError, match="version 3 has no quantised base"):
        decode_manifest(encode_manifest(older))
    plain = json.loads(encode_manifest(tiny_export("bert").manifest))
    assert plain["format_version"] == PLAIN_VERSION
    assert "base" not in plain


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base", "int4", "--train", "full"], "--train full every weight is trained"),
        (["--base", "int8", "--runtime", "onnx,executorch"], "use --runtime onnx, or leave out --base"),
        (["--base-products", "int8"], "--base-products is about a quantised base"),
        (["--base-rows", "rows.jsonl"], "--base-rows is about a quantised base"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_export: Callable[..., Bundle], tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_dir_of(tiny_export("bert"), "bert")
    assert export(model, tmp_path / "bundle", *HEAD, *flags) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_low_cosine_names_the_eps_or_says_that_none_is_known(tiny_export: Callable[..., Bundle]) -> None:
    base = tiny_export("bert", base="int4", levels=(1, 3)).manifest.base
    assert base is not None
    assert base_notes(base) == []
    low = msgspec.structs.replace(base, scalar_cosine=0.9, least_eps=0.03)
    assert "cosine of 0.900" in base_notes(low)[0]
    assert "set eps = 0.03 in the job's [step]" in base_notes(low)[0]
    none = msgspec.structs.replace(low, least_eps=None)
    assert base_notes(none)[0].endswith("use --base int8")
    assert base_notes(msgspec.structs.replace(none, products="int8"))[0].endswith("use --base-products float32")
    assert base_notes(msgspec.structs.replace(none, kind="int8"))[0].endswith("use --base float32")


def test_finished_forms_are_of_the_weights_as_they_were(
    tiny_export: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_export("bert", base="int4", levels=(1, 3))
    adapter, model = (
        finished_folder(bundle, generic_adapter(bundle), tmp_path / "finished"),
        model_dir_of(bundle, "bert"),
    )
    command = ["finish", str(adapter), "--model", str(model), "--to", "merged", "--out"]
    assert main([*command, str(tmp_path / "merged")]) == 0
    assert "trained on an int4 base" in capsys.readouterr().out
    stored, before = (map_tensors(path / "model.safetensors") for path in (tmp_path / "merged", model))
    frozen = [name for name in before if name.endswith("intermediate.dense.weight")]
    assert frozen
    assert all(np.array_equal(stored[name], before[name]) for name in frozen)


def test_what_reads_a_weight_otherwise_is_named() -> None:
    """Only products read blocks; another reader would get no weight."""
    tensor = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["w"], ["y"])],
        "g",
        [tensor("w", onnx.TensorProto.FLOAT, [4, 32])],
        [tensor("y", onnx.TensorProto.FLOAT, [4, 32])],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(ExportError, match="w of a graph is read by something other than a product"):
        use_blocks(model, {"w": BlockShape(4, 32, 4)}, "float32", "input")
