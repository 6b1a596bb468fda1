"""The memory that a training graph's values take, from the shapes of the trace; see bundle/memory_need.py.

The estimate walks the graph in the order of its nodes. A value lives from the node that makes it to the last one that
reads it. As in ONNX Runtime, a reshaped value shares the memory of what it was made from, an elementwise result may
take that of an operand that is read for the last time, and a transposed operand of a matrix product is not copied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

from export.graphs.onnx_pieces import bodies, read_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto, ValueInfoProto

_SAME_MEMORY = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_IN_PLACE = (
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf", "Relu", "Exp"),
    *("Where", "Softmax", "Cast", "Not", "And", "Or", "Max", "Min", "Clip", "ScatterND"),
)
_PRODUCTS = ("MatMul", "Gemm")


def peak_bytes(
    nodes: Sequence[NodeProto],
    results: Sequence[str],
    values: Mapping[str, ValueInfoProto],
    sizes: Mapping[str, int],
) -> int:
    """Return the bytes of the values that are alive at once at most; inputs and constants do not count.

    Args:
        nodes: the graph's nodes, in order.
        results: the graph's outputs, which live to the end.
        values: type and shape of each value, by name; one that is missing counts as nothing.
        sizes: the number behind each named size.
    """
    shared = _shared_memory(nodes)
    last = {shared.get(name, name): n for n, node in enumerate(nodes) for name in read_by(node)}
    last |= {shared.get(name, name): len(nodes) for name in results}
    alive: dict[str, int] = {}
    most = 0
    for n, node in enumerate(nodes):
        made = {name: _bytes(values.get(name), sizes) for name in node.output if name and name not in shared}
        dying = [name for name in {shared.get(r, r) for r in read_by(node)} if last[name] == n and name in alive]
        if node.op_type in _IN_PLACE:
            # The result takes the place of one operand of its size.
            same = next((name for name in dying if alive[name] >= sum(made.values())), None)
            if same is not None:
                dying.remove(same)
                del alive[same]
        alive |= made
        most = max(most, sum(alive.values()) + _inside(node, sizes))
        for name in (*dying, *(name for name in made if name not in last)):
            del alive[name]
    return most


def _shared_memory(nodes: Sequence[NodeProto]) -> dict[str, str]:
    """Return the value whose memory another one shares, by the other one's name."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in read_by(node):
            readers.setdefault(name, []).append(node)
    shared: dict[str, str] = {}
    for node in nodes:
        into_products = all(reader.op_type in _PRODUCTS for reader in readers.get(node.output[0], []))
        if node.op_type in _SAME_MEMORY or (node.op_type == "Transpose" and into_products):
            shared[node.output[0]] = shared.get(node.input[0], node.input[0])
    return shared


def _inside(node: NodeProto, sizes: Mapping[str, int]) -> int:
    """Return the peak of the graphs inside a node, such as the body of a Scan."""
    peaks = []
    for body in bodies(node):
        values = {value.name: value for value in (*body.value_info, *body.output)}
        peaks.append(peak_bytes(body.node, [value.name for value in body.output], values, sizes))
    return max(peaks, default=0)


def _bytes(value: ValueInfoProto | None, sizes: Mapping[str, int]) -> int:
    """Return the bytes of a value; a size without a number counts as 1."""
    if value is None:
        return 0
    tensor = value.type.tensor_type
    sides = [_side(dimension, sizes) for dimension in tensor.shape.dim]
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize) * math.prod(sides)


def _side(dimension: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, int]) -> int:
    """Return a side of a shape: a number, a named size, or a product of those such as ``4*batch``."""
    if not dimension.dim_param:
        return dimension.dim_value or 1
    side = 1
    for factor in dimension.dim_param.split("*"):
        side *= int(factor) if factor.isdecimal() else sizes.get(factor, 1)
    return side
