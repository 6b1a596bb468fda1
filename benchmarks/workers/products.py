"""The routine that bounds a prediction from below: its matrix products alone, on the same runtime and threads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.workers.routines import bundle_of, random_batch

if TYPE_CHECKING:
    import onnx

    from benchmarks.workers.routines import Routines, Settings
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch

Operands = tuple[list[int], list[int]]
"""The shapes of a matrix product's two operands, as the product reads them: transposed where the node says so."""
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
_KERNEL_TIME = "_kernel_time"


def matmuls(settings: Settings) -> Routines:
    """``run``: the matrix products of a prediction, of the same shapes, with ONNX Runtime on the same threads."""
    import onnx
    import onnxruntime as ort

    shapes = product_shapes(bundle_of(settings), random_batch(settings), settings["threads"])
    nodes, inputs, outputs, feeds = [], [], [], {}
    rng = np.random.Generator(np.random.PCG64(0))
    for index, operands in enumerate(shapes):
        for side, shape in zip("ab", operands, strict=True):
            inputs.append(onnx.helper.make_tensor_value_info(f"{side}{index}", onnx.TensorProto.FLOAT, shape))
            value = rng.standard_normal(shape, dtype=np.float32)
            feeds[f"{side}{index}"] = ort.OrtValue.ortvalue_from_numpy(value)
        nodes.append(onnx.helper.make_node("MatMul", [f"a{index}", f"b{index}"], [f"y{index}"]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, None))
    graph = onnx.helper.make_graph(nodes, "products", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in outputs]
    return {"run": lambda: session.run_with_ort_values(names, feeds)}


def product_shapes(bundle: Bundle, batch: Batch, threads: int) -> list[Operands]:
    """Return the operand shapes of every matrix product of a batch's prediction, in the order in which they run.

    ONNX Runtime's profile of one prediction holds the shapes; its optimized graph holds which operands are transposed.
    """
    import onnx
    import onnxruntime as ort

    from edge_runtime.engines.bundle_engine import BundlePredictor
    from edge_runtime.engines.onnx_engine import OnnxOpener

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        predictor = BundlePredictor(bundle, OnnxOpener(threads, options))
        predictor.logits(bundle.initial_adapter(), batch)
        del predictor  # its session writes the profile when it ends
        (profile,) = Path(folder).glob("profile*.json")
        events = json.loads(profile.read_text())
        nodes = {node.name: node for node in onnx.load(options.optimized_model_filepath).graph.node}
    return [
        _operands(nodes[name], event["args"]["input_type_shape"])
        for event in events
        if event["name"].endswith(_KERNEL_TIME)
        and (name := event["name"].removesuffix(_KERNEL_TIME)) in nodes
        and nodes[name].op_type in _PRODUCTS
    ]


def _operands(node: onnx.NodeProto, inputs: list[dict[str, list[int]]]) -> Operands:
    """Return the shapes that a product multiplies.

    Args:
        node: the product.
        inputs: its inputs as the profile has them: each a shape by its type's name.
    """
    flags: dict[str, Any] = {attribute.name: attribute.i for attribute in node.attribute}
    if flags.get("transBatchA") or flags.get("transBatchB"):
        raise SystemExit(f"{node.name}: this benchmark cannot read products with transposed batch dimensions")
    first, second = (next(iter(shape.values())) for shape in inputs[:2])
    return (
        _transposed(first) if flags.get("transA") else first,
        _transposed(second) if flags.get("transB") else second,
    )


def _transposed(shape: list[int]) -> list[int]:
    return [*shape[:-2], shape[-1], shape[-2]]
