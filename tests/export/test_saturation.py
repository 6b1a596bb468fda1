"""Sums of int8 products at the extremes: exact on this machine, and on an emulated one without int8 dot products.

Processors with AVX2 alone add two products of a byte and a signed byte in 16 bits, which saturates at 32767. Operators
that multiply unsigned with signed bytes (MatMulInteger) then give wrong sums, without any error; what a bundle uses
must not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
import torch

from edge_runtime.bundle.base import BITS, BaseKind
from edge_runtime.values import Tensor
from export.graphs.block_products import parts_of, use_blocks
from export.model.blocks import quantise

QEMU = "qemu-x86_64"
AVX2_ALONE = "Haswell,-hle,-rtm,-invpcid,-x2apic,-tsc-deadline,-pcid"
COLUMNS, ROWS = 256, 32
SIGNS = np.where(np.arange(COLUMNS) % 3 == 0, -1, 1).astype(np.float32)
EXTREMES = {"largest": np.ones(COLUMNS, np.float32), "smallest": -np.ones(COLUMNS, np.float32), "mixed": SIGNS}
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""


def blocks_graph(kind: BaseKind, weight: Tensor) -> tuple[onnx.ModelProto, Tensor]:
    """Return x @ weight.T in int8 on the blocks of a weight, as an export writes it, and the dequantised weight."""
    tensor = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    inputs = [tensor("x", onnx.TensorProto.FLOAT, ["n", COLUMNS]), tensor("w", onnx.TensorProto.FLOAT, [ROWS, COLUMNS])]
    made = onnx.helper.make_graph(nodes, "g", inputs, [tensor("y", onnx.TensorProto.FLOAT, ["n", ROWS])])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    blocks = quantise(torch.from_numpy(weight), BITS[kind])
    rewritten = use_blocks(model, {"w": blocks.shape}, "int8", "constant").model
    values = {"_blocks": blocks.data, "_scales": blocks.scales, "_zero_points": blocks.zero_points}
    here = [onnx.numpy_helper.from_array(value.numpy(), f"w{end}") for end, value in values.items()]
    assert {part.name for part in parts_of("w", blocks.shape)} == {value.name for value in here}
    del rewritten.graph.initializer[:]
    rewritten.graph.initializer.extend(here)
    return rewritten, blocks.dequantised().numpy()


def integer_graph() -> onnx.ModelProto:
    """Return the product of unsigned and signed bytes that dynamic quantisation uses, all at their largest."""
    weight = onnx.numpy_helper.from_array(np.full((COLUMNS, ROWS), 127, np.int8), "w")
    tensor = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "g",
        [tensor("x", onnx.TensorProto.UINT8, ["n", COLUMNS])],
        [tensor("y", onnx.TensorProto.INT32, ["n", ROWS])],
        [weight],
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("weights", EXTREMES)
@pytest.mark.parametrize("activations", EXTREMES)
def test_extremes_are_exact_here(kind: BaseKind, weights: str, activations: str) -> None:
    model, dequantised = blocks_graph(kind, np.tile(EXTREMES[weights], (ROWS, 1)))
    x = np.tile(EXTREMES[activations], (9, 1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    assert np.abs(found - x @ dequantised.T).max() < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU} (Debian package qemu-user)")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the emulated processor runs this machine's libraries")
def test_extremes_are_exact_on_a_processor_where_the_trap_is(tmp_path: Path) -> None:
    ones = np.ones((9, COLUMNS), np.float32)
    wrong = emulated(tmp_path, "integer", integer_graph(), np.full((9, COLUMNS), 255, np.uint8))
    assert (wrong < 255 * 127 * COLUMNS).all(), "this emulated processor does not show the trap"
    for kind in BITS:
        model, dequantised = blocks_graph(kind, np.tile(EXTREMES["largest"], (ROWS, 1)))
        found = emulated(tmp_path, kind, model, ones)
        assert np.abs(found - ones @ dequantised.T).max() < 1e-3


def emulated(folder: Path, name: str, model: onnx.ModelProto, x: Tensor) -> Tensor:
    """Run a graph on an emulated processor with AVX2 and nothing newer."""
    paths = [folder / f"{name}.{end}" for end in ("onnx", "x.npy", "y.npy")]
    onnx.save(model, paths[0])
    np.save(paths[1], x)
    python = Path(sys.executable).resolve()
    libraries = str(Path(np.__file__).parents[1])
    # NumPy's own BLAS would choose code for the real processor's cache and cores.
    environment = os.environ | {"PYTHONPATH": libraries, "OPENBLAS_CORETYPE": "Haswell"}
    command = [QEMU, "-cpu", AVX2_ALONE, str(python), "-c", RUN, *map(str, paths)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=500)
    found: Tensor = np.load(paths[2])
    return found
