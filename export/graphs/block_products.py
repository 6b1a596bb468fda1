"""Rewrites an ONNX graph for quantised weights: products read blocks, and what needs the weight itself dequantises it.

``x @ W.T`` becomes MatMulNBits of ONNX Runtime, which reads the blocks of W. A gradient passes as ``g @ W``, which no
operator computes from such blocks: the graph dequantises W there, into memory of that one product. It waits for g, so
that the runtime neither dequantises all weights at its start nor keeps one of them for two products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx.numpy_helper

from edge_runtime.bundle.base import BLOCKS, SCALES, ZERO_POINTS
from export.errors import ExportError
from export.graphs.onnx_pieces import cut_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto

    from edge_runtime.bundle.base import Arithmetic
    from edge_runtime.bundle.manifest import Dtype
    from export.model.blocks import BlockShape

DOMAIN = "com.microsoft"
_LEVELS: dict[Arithmetic, int] = {"float32": 1, "int8": 4}
"""MatMulNBits' attribute accuracy_level."""
_TYPES = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}
_EXTERNAL_FILE = "weights"
"""Named in the graph only: a device gives constants to the runtime, which then opens no file."""


@dataclass(frozen=True)
class Part:
    """One of the three tensors of a quantised weight as an input of a graph.

    Attributes:
        name: the input's name.
        suffix: what follows the weight's name in the weights file.
        dtype: element type.
        shape: its shape.
    """

    name: str
    suffix: str
    dtype: Dtype
    shape: tuple[int, ...]


def parts_of(name: str, shape: BlockShape) -> list[Part]:
    """Return the three tensors that take the place of a graph's input ``name``."""
    return [
        Part(name + "_blocks", BLOCKS, "uint8", (shape.rows, shape.blocks, shape.block_bytes)),
        Part(name + "_scales", SCALES, "float32", (shape.rows, shape.blocks)),
        Part(name + "_zero_points", ZERO_POINTS, "uint8", (shape.rows, shape.zero_point_bytes)),
    ]


@dataclass(frozen=True)
class InBlocks:
    """A graph that reads quantised weights.

    Attributes:
        model: the graph.
        values: type and shape of the values that are as large as a weight, by name.
        sums: for each product that a bias is added to, the value that has its type and shape.
    """

    model: onnx.ModelProto
    values: dict[str, onnx.ValueInfoProto]
    sums: dict[str, str]


def use_blocks(
    model: onnx.ModelProto,
    weights: Mapping[str, BlockShape],
    arithmetic: Arithmetic,
    place: Literal["input", "constant"],
) -> InBlocks:
    """Make a graph read some of its inputs in blocks; the others, and its outputs, stay as they are.

    Args:
        model: the graph; it is changed.
        weights: the shape of each quantised weight, by the input's name.
        arithmetic: what products with constants are computed in.
        place: whether the blocks are inputs, or constants that the runtime is given when it loads the graph.

    Raises:
        ExportError: a weight is read by something other than a product.
    """
    graph = model.graph
    present = {value.name for value in graph.input}
    weights = {name: shape for name, shape in weights.items() if name in present}
    if not weights:
        return InBlocks(model, {}, {})
    rewriter = _Rewriter(graph.node, weights, arithmetic)
    nodes = rewriter.run()
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(rewriter.constants.values())
    for part in (part for name, shape in weights.items() for part in parts_of(name, shape)):
        if place == "input":
            graph.input.append(onnx.helper.make_tensor_value_info(part.name, _TYPES[part.dtype], part.shape))
        else:
            graph.initializer.append(_elsewhere(part))
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    made = cut_onnx(model, [value.name for value in graph.output], [])
    left = sorted({value.name for value in made.graph.input} & weights.keys())
    if left:
        raise ExportError(f"--base: {left[0]} of a graph is read by something other than a product", "leave out --base")
    return InBlocks(made, rewriter.values, rewriter.sums)


def _elsewhere(part: Part) -> onnx.TensorProto:
    """Return a constant whose data is not in the graph's file."""
    tensor = onnx.TensorProto(name=part.name, data_type=_TYPES[part.dtype], dims=part.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_EXTERNAL_FILE)
    return tensor


class _Rewriter:
    """Rewrites the nodes of a graph.

    Attributes:
        constants: the constants that the new nodes read.
        values: type and shape of what new nodes make, as far as it is as large as a weight.
        sums: see InBlocks.
    """

    def __init__(self, nodes: Sequence[NodeProto], weights: Mapping[str, BlockShape], arithmetic: Arithmetic) -> None:
        self._nodes, self._weights, self._level = nodes, weights, _LEVELS[arithmetic]
        self._made: list[NodeProto] = []
        self._turned: dict[str, str] = {}
        self._same: dict[str, str] = {}
        self._dequantised = 0
        self.constants: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, onnx.ValueInfoProto] = {}
        self.sums: dict[str, str] = {}

    def run(self) -> list[NodeProto]:
        """Return the nodes, in an order in which each follows what it reads."""
        for node in self._nodes:
            if node.op_type == "Transpose" and self._is_view(node):
                continue
            if node.op_type in ("MatMul", "Gemm") and len(node.input) > 1 and self._is_product(node):
                continue
            self._made.append(node)
        return self._made

    def _is_view(self, node: NodeProto) -> bool:
        """Note a transposed weight, or one that is transposed twice; the node itself is of use to others only."""
        source, result = node.input[0], node.output[0]
        if source in self._weights or source in self._same:
            self._turned[result] = self._same.get(source, source)
        elif source in self._turned:
            self._same[result] = self._turned[source]
        else:
            return False
        self._made.append(node)
        return True

    def _is_product(self, node: NodeProto) -> bool:
        """Emit a product with a quantised weight; return whether the node is one."""
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        second = node.input[1]
        is_turned = second in self._turned
        weight = self._turned.get(second) or self._same.get(second) or (second if second in self._weights else None)
        plain = not settings.get("transA") and settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
        if weight is None or not plain:
            return False
        if bool(settings.get("transB")) != is_turned:
            self._emit_product(node, weight)
        else:
            self._emit_dequantised(node, weight)
        return True

    def _emit_product(self, node: NodeProto, weight: str) -> None:
        """Emit x @ W.T, and the bias that a Gemm adds."""
        shape, (result,) = self._weights[weight], node.output
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{result}_product" if bias else result
        self._made.append(
            onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], *(part.name for part in parts_of(weight, shape))],
                [product],
                name=f"{product}_blocks",
                domain=DOMAIN,
                K=shape.columns,
                N=shape.rows,
                bits=shape.bits,
                block_size=shape.block_size,
                accuracy_level=self._level,
            )
        )
        if bias:
            self.sums[product] = result
            self._node("Add", [product, bias], result)

    def _emit_dequantised(self, node: NodeProto, weight: str) -> None:
        """Emit W from its blocks once the product's first operand is there, and then the product."""
        own, shape = f"{weight}_dequantised_{self._dequantised}", self._weights[weight]
        self._dequantised += 1
        blocks, scales, zero_points = (part.name for part in parts_of(weight, shape))
        last = self._constant("last", [-1])
        self._node("Size", [node.input[0]], f"{own}_size")
        self._node("Mul", [f"{own}_size", self._constant("none", 0)], f"{own}_nothing")
        self._node("Cast", [f"{own}_nothing"], f"{own}_waits", to=onnx.TensorProto.UINT8)
        sides = (shape.rows, shape.blocks, shape.block_size)
        whole = self._whole_numbers(blocks, f"{own}_whole", shape.bits, sides)
        points_of_bytes = shape.zero_point_bytes * 8 // shape.bits
        points = self._whole_numbers(zero_points, f"{own}_points", shape.bits, (shape.rows, points_of_bytes))
        if points_of_bytes > shape.blocks:
            points = self._first(points, shape.blocks)
        self._node("Unsqueeze", [points, last], f"{own}_zero")
        self._node("Unsqueeze", [scales, last], f"{own}_scale")
        self._node("Sub", [whole, f"{own}_zero"], f"{own}_shifted", sides)
        self._node("Mul", [f"{own}_shifted", f"{own}_scale"], f"{own}_scaled", sides)
        result = f"{own}_rows"
        self._node("Reshape", [f"{own}_scaled", self._constant(f"rows_{shape.rows}", [shape.rows, -1])], result)
        if shape.blocks * shape.block_size > shape.columns:
            result = self._first(result, shape.columns)
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.input[1] = result
        del product.attribute[:]
        product.attribute.extend(attribute for attribute in node.attribute if attribute.name != "transB")
        self._made.append(product)

    def _whole_numbers(self, source: str, own: str, bits: int, sides: Sequence[int]) -> str:
        """Emit what bytes hold as float32 of the shape ``sides``; return its name. ``own`` ends with the purpose."""
        waits = f"{own.rpartition('_')[0]}_waits"
        if bits == 8:
            self._node("BitwiseOr", [source, waits], f"{own}_bytes")
        else:
            for half, kind, by in (("low", "BitwiseAnd", 15), ("high", "BitShift", 4)):
                self._node("BitwiseOr", [self._constant(f"byte_{by}", by, "uint8"), waits], f"{own}_{half}_by")
                settings = {"direction": "RIGHT"} if kind == "BitShift" else {}
                self._made.append(
                    onnx.helper.make_node(kind, [source, f"{own}_{half}_by"], [f"{own}_{half}"], **settings)
                )
                self._node("Unsqueeze", [f"{own}_{half}", self._constant("last", [-1])], f"{own}_{half}_one")
            self._node("Concat", [f"{own}_low_one", f"{own}_high_one"], f"{own}_pairs", axis=-1)
            shape = self._constant("sides_" + "_".join(map(str, sides)), sides)
            self._node("Reshape", [f"{own}_pairs", shape], f"{own}_bytes")
        self._node("Cast", [f"{own}_bytes"], own, sides, to=onnx.TensorProto.FLOAT)
        return own

    def _first(self, name: str, count: int) -> str:
        """Emit the first ``count`` of a value's last axis; return its name."""
        bounds = [self._constant("start", [0]), self._constant(f"stop_{count}", [count]), self._constant("last", [-1])]
        self._node("Slice", [name, *bounds], f"{name}_first")
        return f"{name}_first"

    def _constant(self, name: str, value: object, dtype: str = "int64") -> str:
        """Return the name of a small constant."""
        array = np.asarray(value, dtype=dtype)
        self.constants[name] = onnx.numpy_helper.from_array(array, f"covey_blocks_{name}")
        return f"covey_blocks_{name}"

    def _node(
        self, kind: str, values: Sequence[str], result: str, sides: Sequence[int] | None = None, **settings: int
    ) -> None:
        """Emit a node; ``sides`` is the shape of a result that is as large as the weight, float32."""
        self._made.append(onnx.helper.make_node(kind, values, [result], **settings))
        if sides is not None:
            self.values[result] = onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, sides)
