"""The memory that a training graph's values take, from the shapes of the trace; see bundle/memory_need.py.

The graph is walked in the order of its nodes. A value lives from the node that makes it to the last one that reads it.
As in ONNX Runtime, a reshaped value shares the memory of what it was made from, an elementwise result may take that of
an operand that is read for the last time, and an operand of a matrix product whose last two axes are swapped is not
copied. Values lie in an arena like ONNX Runtime's, which grows by what is asked for and finds no room in what is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx

from export.graphs.onnx_pieces import bodies, read_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto, ValueInfoProto

_SAME_MEMORY = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_IN_PLACE = (
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Relu", "Exp", "Cast"),
    *("ScatterND", "ScatterElements"),
)
_PRODUCTS = ("MatMul", "Gemm")


def peak_bytes(
    nodes: Sequence[NodeProto],
    results: Sequence[str],
    values: Mapping[str, ValueInfoProto],
    sizes: Mapping[str, int],
) -> int:
    """Return the bytes to which the arena of a graph's values grows; inputs and constants do not count.

    Args:
        nodes: the graph's nodes, in order.
        results: the graph's outputs, which live to the end.
        values: type and shape of each value, by name; one that is missing counts as nothing.
        sizes: the number behind each named size.
    """
    shared = _shared_memory(nodes)
    last = {shared.get(name, name): n for n, node in enumerate(nodes) for name in read_by(node)}
    last |= {shared.get(name, name): len(nodes) for name in results}
    arena = _Arena()
    alive: dict[str, _Piece] = {}
    inside = 0
    for n, node in enumerate(nodes):
        made = {name: _bytes(values.get(name), sizes) for name in node.output if name and name not in shared}
        dying = [name for name in {shared.get(r, r): None for r in read_by(node)} if last[name] == n and name in alive]
        for name, size in made.items():
            taken = next((d for d in dying if node.op_type in _IN_PLACE and alive[d].size >= size), None)
            alive[name] = arena.take(size) if taken is None else alive.pop(taken)
            if taken is not None:
                dying.remove(taken)
        inside = max(inside, _inside(node, sizes))
        for name in (*dying, *(name for name in made if name not in last)):
            arena.give_back(alive.pop(name))
    return arena.size + inside


@dataclass(eq=False)
class _Piece:
    """A piece of a region of the arena; ``before`` and ``after`` are its neighbours."""

    size: int
    is_free: bool = False
    before: _Piece | None = None
    after: _Piece | None = None


@dataclass
class _Arena:
    """Memory that grows by what is asked for; free neighbours are joined, and a piece of twice the size is divided."""

    size: int = 0
    free: list[_Piece] = field(default_factory=list)

    def take(self, size: int) -> _Piece:
        """Return the smallest free piece that is large enough, or a new region."""
        fitting = [piece for piece in self.free if piece.size >= size]
        if not fitting:
            self.size += size
            return _Piece(size)
        piece = min(fitting, key=lambda candidate: candidate.size)
        self.free.remove(piece)
        piece.is_free = False
        if size and piece.size >= 2 * size:
            rest = _Piece(piece.size - size, is_free=True, before=piece, after=piece.after)
            if piece.after is not None:
                piece.after.before = rest
            piece.size, piece.after = size, rest
            self.free.append(rest)
        return piece

    def give_back(self, piece: _Piece) -> None:
        """Free a piece, and join it with its free neighbours."""
        piece.is_free = True
        if piece.after is not None and piece.after.is_free:
            self.free.remove(piece.after)
            _join(piece, piece.after)
        if piece.before is not None and piece.before.is_free:
            _join(piece.before, piece)
        else:
            self.free.append(piece)


def _join(first: _Piece, second: _Piece) -> None:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first


def _shared_memory(nodes: Sequence[NodeProto]) -> dict[str, str]:
    """Return the value whose memory another one shares, by the other one's name."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in read_by(node):
            readers.setdefault(name, []).append(node)
    shared: dict[str, str] = {}
    for node in nodes:
        into_products = all(reader.op_type in _PRODUCTS for reader in readers.get(node.output[0], []))
        if node.op_type in _SAME_MEMORY or (_swaps_last_two(node) and into_products):
            shared[node.output[0]] = shared.get(node.input[0], node.input[0])
    return shared


def _swaps_last_two(node: NodeProto) -> bool:
    """Return whether a node is a transposition that leaves all axes but the last two where they are."""
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [1, 0])
    last = len(axes) - 1
    return node.op_type == "Transpose" and axes == [*range(last - 1), last, last - 1]


def _inside(node: NodeProto, sizes: Mapping[str, int]) -> int:
    """Return the memory of the graphs inside a node, such as the body of a Scan."""
    found = []
    for body in bodies(node):
        values = {value.name: value for value in (*body.value_info, *body.output)}
        found.append(peak_bytes(body.node, [value.name for value in body.output], values, sizes))
    return max(found, default=0)


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
