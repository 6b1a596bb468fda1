"""Converts a lifted program to ONNX once, and cuts front, back and predict out of the converted graph.

The conversion takes nearly all the time of an export, so all splits share one. Small computations that two pieces need
(sizes, the mask's conversion) are part of both. This is the second half of the graph surgery after trace/lift.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx.numpy_helper
import torch

from export.errors import REPORT_HINT, compiling
from export.quiet import quiet
from export.trace.batches import shape_of

if TYPE_CHECKING:
    from collections.abc import KeysView, Mapping, Sequence

    from edge_runtime.bundle.manifest import Rows
    from export.trace.lift import Lifted

OPSET = 20
"""The first opset with Gelu as one operator; LayerNormalization is one operator since opset 17."""


def to_onnx(
    lifted: Lifted, examples: Sequence[torch.Tensor], bounds: dict[str, tuple[int, int]], names: dict[Any, str]
) -> onnx.ModelProto:
    """Convert a lifted program to ONNX; inputs and outputs keep their names.

    Args:
        lifted: the program.
        examples: a tensor for each input, in order.
        bounds: the smallest and the largest value of each named size.
        names: the names of the symbolic sizes; see dimension_names.

    Raises:
        ExportError: torch.onnx cannot convert the program.
    """
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    shapes = tuple(
        {index: dims[size] for index, size in enumerate(shape_of(item.value, names)) if isinstance(size, str)}
        for item in lifted.inputs
    )
    return convert(lifted, examples, shapes)


def convert(
    lifted: Lifted, examples: Sequence[torch.Tensor], shapes: Sequence[Mapping[int, Any]], hint: str = REPORT_HINT
) -> onnx.ModelProto:
    """Convert a lifted program to ONNX, with the dynamic sizes of each input, by axis.

    Raises:
        ExportError: torch.onnx cannot convert the program.
    """
    with compiling("torch.onnx cannot convert the model", hint), quiet(), torch.no_grad():
        exported = torch.onnx.export(
            lifted.module,
            tuple(examples),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=[item.name for item in lifted.inputs],
            output_names=list(lifted.outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None  # noqa: S101 dynamo=True always returns a program
    return exported.model_proto


def cut_onnx(model: onnx.ModelProto, outputs: Sequence[str], stops: Sequence[str]) -> onnx.ModelProto:
    """Cut out the piece of an ONNX graph that computes ``outputs``; values named in ``stops`` become its inputs.

    Args:
        model: the whole graph; ``outputs`` and ``stops`` name outputs of it.
        outputs: the outputs of the piece.
        stops: values that the piece takes as inputs, where it needs them, instead of computing them.
    """
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in producer and name not in stops:
            waiting += read_by(producer[name])
    nodes = [node for node in graph.node if any(name in needed and name not in stops for name in node.output)]
    described = {value.name: value for value in graph.output}
    made = onnx.helper.make_graph(
        nodes,
        "covey",
        inputs=[value for value in graph.input if value.name in needed] + [described[n] for n in stops if n in needed],
        outputs=[described[name] for name in outputs],
        initializer=[tensor for tensor in graph.initializer if tensor.name in needed],
    )
    result = onnx.helper.make_model(made, opset_imports=model.opset_import, functions=model.functions)
    result.ir_version = model.ir_version
    result.producer_name = "covey"
    _strip(result.graph)
    return result


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node, such as the body of a Scan."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def read_by(node: onnx.NodeProto) -> KeysView[str]:
    """Return the values that a node reads, in order, including those that the graphs inside it read from outside."""
    read = dict.fromkeys(name for name in node.input if name)
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        own |= {name for inner in body.node for name in inner.output}
        read |= dict.fromkeys(name for inner in body.node for name in read_by(inner) if name not in own)
    return read.keys()


_SAME_VALUES = {"Identity", "Reshape", "Squeeze", "Unsqueeze"}
"""Operators that keep the values of their first input."""


def rows_read(graph: onnx.GraphProto, name: str) -> Rows | None:
    """Return the rows of an input that a graph reads (see manifest.GraphInput); None where it may read them all.

    The rows are known only if every reader gathers rows, by the batch's tokens or by constant indexes.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    found: list[Rows] = []
    for node in graph.node:
        if name not in read_by(node):
            continue
        if node.op_type != "Gather" or node.input[0] != name or _axis(node) != 0:
            return None
        indexes = node.input[1]
        while indexes in producer and producer[indexes].op_type in _SAME_VALUES:
            indexes = producer[indexes].input[0]
        if indexes == "input_ids":
            found.append("input_ids")
        elif indexes in constants:
            found.append(sorted({int(i) for i in onnx.numpy_helper.to_array(constants[indexes]).reshape(-1)}))
        else:
            return None
    return found[0] if found and all(rows == found[0] for rows in found) else None


def _axis(gather: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in gather.attribute if attribute.name == "axis"), 0)


def _strip(graph: onnx.GraphProto) -> None:
    """Remove the converter's notes about sources: they are two thirds of the file and name paths of this machine."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for node in graph.node:
        for body in bodies(node):
            _strip(body)
