"""Makes the back block of a lifted program take many adapters at once: one batch, P stacked vectors, P losses.

The program is rewritten, not traced again. A value that no trained tensor touches stays as it is, computed once for all
adapters. From the first product with a trained tensor on, the batch has P times as many rows, those of the first
adapter first: base weights are read once for all of them, and products with trained tensors become batched products.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edge_runtime.bundle.stack import ADAPTERS, LOSSES
from export.errors import ExportError
from export.model.address import address_of
from export.trace.lift import Lifted, LiftedInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from export.model.address import Address

MOST_TRACED = 4096
"""Bound of the number of adapters in a trace."""
_ATEN = torch.ops.aten
_WITHOUT = "leave out --stack: devices then run one adapter after the other"


@dataclass(frozen=True)
class StackedBack:
    """The back block of a split for many adapters.

    Attributes:
        lifted: the program. Before its inputs it takes ``adapters``, float32, (stack, back size); its only output is
            ``losses``, float32, (stack,).
    """

    lifted: Lifted


def stack_back(lifted: Lifted, split: int, parameters: Sequence[Parameter], state: Mapping[str, Any]) -> StackedBack:
    """Return the back block of a split for many adapters.

    Args:
        lifted: the lifted program of a classification task.
        split: one of its splits.
        parameters: the layout of the trained tensors.
        state: the trained tensors by name, sharing the model's data.

    Raises:
        ExportError: a trained tensor is used in another way than in a linear layer, or the loss is not a mean of rows.
    """
    outputs = next(node for node in lifted.module.graph.nodes if node.op == "output").args[0]
    by_name = dict(zip(lifted.outputs, outputs, strict=True))
    crossing = {by_name[name]: name for name in lifted.boundaries[split]}
    back = [p for p in parameters if p.layer >= split]
    trained = {address_of(state[p.name]): p for p in back}
    return _Stacker(lifted, crossing, trained, back[0].offset).run(by_name["loss"])


class _Stacker:
    """Rewrites one back block.

    Every value has up to two forms: ``_single``, that of the batch as it is, and ``_many``, that of P times as many
    rows. Sizes have both, too.
    """

    def __init__(
        self, lifted: Lifted, crossing: Mapping[fx.Node, str], trained: Mapping[Address, Parameter], start: int
    ) -> None:
        self._lifted, self._crossing, self._start = lifted, crossing, start
        self._items = {item.name: item for item in lifted.inputs}
        self._trained = {
            item.name: trained[address_of(lifted.state[item.source])]
            for item in lifted.inputs
            if item.kind == "parameter" and address_of(lifted.state[item.source]) in trained
        }
        self._rows = self._items["labels"].value.shape[0].node.expr
        self._graph = fx.Graph()
        self._single: dict[fx.Node, fx.Node] = {}
        self._many: dict[fx.Node, fx.Node] = {}
        self._varies: set[fx.Node] = set()
        self._numbered: set[fx.Node] = set()  # says which row is which: more rows have other values
        self._inputs: list[LiftedInput] = []

    def run(self, loss: fx.Node) -> StackedBack:
        """Rewrite what the loss depends on."""
        if loss.target is not _ATEN.cross_entropy_loss.default or len(loss.args) != 2 or loss.kwargs:
            raise ExportError("--stack: the loss is not a mean over rows", _WITHOUT)
        needed = self._needed(loss)
        adapters = self._graph.placeholder(ADAPTERS)
        nodes = [node for node in self._lifted.module.graph.nodes if node in needed]
        for node in nodes:
            if node.op == "placeholder" or node in self._crossing:
                self._add_input(node)
        labels = next(n for n in self._single if n.name == "labels")
        self._count = self._size(adapters, 0)
        self._batch = self._size(self._single[labels], 0)
        self._all = self._call(operator.mul, self._count, self._batch)
        self._adapters = adapters
        for node in nodes:
            if node not in self._single and node.name not in self._trained and node is not loss:
                self._rewrite(node)
        if loss.args[0] not in self._varies:
            raise ExportError("--stack: no trained tensor is behind the split", _WITHOUT)
        logits, targets = (self._as_many(argument) for argument in loss.args)
        scores = self._call(_ATEN.log_softmax.int, logits, -1)
        picked = self._call(_ATEN.gather.default, scores, 1, self._call(_ATEN.unsqueeze.default, targets, 1))
        table = self._call(_ATEN.reshape.default, self._call(_ATEN.neg.default, picked), [self._count, self._batch])
        self._graph.output((self._call(_ATEN.mean.dim, table, [1]),))
        self._graph.eliminate_dead_code()
        return self._finished(loss)

    def _finished(self, loss: fx.Node) -> StackedBack:
        used = {node.name for node in self._graph.nodes if node.op == "placeholder" and node.users}
        for node in list(self._graph.nodes):
            if node.op == "placeholder" and not node.users:
                self._graph.erase_node(node)
        module = fx.GraphModule(self._lifted.module, self._graph)
        inputs = [item for item in self._inputs if item.name in used]
        return StackedBack(Lifted(module, inputs, {LOSSES: loss.meta["val"]}, self._lifted.state, {}, {}))

    def _needed(self, loss: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        waiting = [loss]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [] if node in self._crossing else node.all_input_nodes
        return found

    def _add_input(self, node: fx.Node) -> None:
        name = self._crossing.get(node, node.name)
        if name in self._trained:
            self._varies.add(node)
            return
        self._single[node] = self._graph.placeholder(name)
        item = self._items.get(name)
        self._inputs.append(item or LiftedInput(name, "batch", name, self._lifted.outputs[name]))

    def _rewrite(self, node: fx.Node) -> None:
        """Emit one node: as it is where no trained tensor is behind it, else for P times as many rows."""
        arguments = node.all_input_nodes
        if _is_size(node):
            self._emit_size(node)
            return
        if node.op == "get_attr" or not self._varies.intersection(arguments):
            if any(a in self._numbered for a in arguments) or self._is_created_by_rows(node):
                self._numbered.add(node)
            self._single[node] = self._graph.node_copy(node, self._single.__getitem__)
            return
        self._varies.add(node)
        trained = [a for a in arguments if a.name in self._trained]
        if not trained:
            self._many[node] = self._graph.node_copy(node, self._as_many)
        elif node.target is _ATEN.linear.default and node.args[1] in trained and node.args[0] not in trained:
            self._many[node] = self._product(*node.args)
        else:
            what = self._trained[trained[0].name].name
            raise ExportError(f"--stack: {what} is trained, and not the weight of a linear layer", _WITHOUT)

    def _emit_size(self, node: fx.Node) -> None:
        """Emit a size in both forms."""
        expression = getattr(node.meta["val"], "node", None)
        expression = None if expression is None else expression.expr
        if expression == self._rows:
            self._single[node], self._many[node] = self._batch, self._all
        elif any(a in self._varies for a in node.all_input_nodes):
            self._many[node] = self._graph.node_copy(node, self._as_many)
            if not self._has_rows(expression):
                self._single[node] = self._many[node]
        else:
            self._single[node] = self._graph.node_copy(node, self._single.__getitem__)
            is_alike = not self._has_rows(expression)
            self._many[node] = self._single[node] if is_alike else self._graph.node_copy(node, self._as_many)

    def _as_many(self, node: fx.Node) -> fx.Node:
        """Return a value for P times as many rows."""
        if node in self._many:
            return self._many[node]
        value = self._value(node)
        sides = [self._has_rows(getattr(getattr(side, "node", None), "expr", None)) for side in value.shape]
        if node in self._numbered or any(sides[1:]):
            if node in self._crossing or node.op != "call_function":
                raise ExportError(f"--stack: what crosses the split has its rows in another place ({node})", _WITHOUT)
            made = self._graph.node_copy(node, self._as_many)
        elif sides and sides[0]:
            single = self._single[node]
            rest = [self._size(single, axis) for axis in range(len(sides))]
            shape = [self._call(operator.mul, self._count, rest[0]), *rest[1:]]
            spread = self._call(
                _ATEN.expand.default, self._call(_ATEN.unsqueeze.default, single, 0), [self._count, *rest]
            )
            made = self._call(_ATEN.reshape.default, spread, shape)
        else:
            made = self._single[node]
        self._many[node] = made
        return made

    def _product(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> fx.Node:
        """Emit a linear layer with a trained weight: a product for each adapter."""
        value = self._value(x)
        is_single = x not in self._varies
        if len(value.shape) < 2 or not self._has_rows(getattr(getattr(value.shape[0], "node", None), "expr", None)):
            name = self._trained[weight.name].name
            raise ExportError(f"--stack: {name} is trained, and applied to something that rows share", _WITHOUT)
        if is_single and x in self._numbered:
            is_single = False
        source = self._single[x] if is_single else self._as_many(x)
        width = int(value.shape[-1])
        sizes = [self._size(source, axis) for axis in range(len(value.shape) - 1)]
        rows = self._call(_ATEN.reshape.default, source, [1 if is_single else self._count, -1, width])
        turned = self._call(_ATEN.transpose.int, self._part(weight), 1, 2)
        result = self._call(_ATEN.matmul.default, rows, turned)
        if bias is not None:
            added = self._part(bias) if bias.name in self._trained else self._single[bias]
            added = self._call(_ATEN.unsqueeze.default, added, 1) if bias.name in self._trained else added
            result = self._call(_ATEN.add.Tensor, result, added)
        first = self._call(operator.mul, self._count, sizes[0]) if is_single else sizes[0]
        shape = [first, *sizes[1:], self._trained[weight.name].shape[0]]
        return self._call(_ATEN.reshape.default, result, shape)

    def _part(self, node: fx.Node) -> fx.Node:
        """Return a trained tensor of every adapter: (stack, …)."""
        parameter = self._trained[node.name]
        first = parameter.offset - self._start
        part = self._call(_ATEN.slice.Tensor, self._adapters, 1, first, first + parameter.size)
        return self._call(_ATEN.reshape.default, part, [self._count, *parameter.shape])

    def _value(self, node: fx.Node) -> Any:
        if node in self._crossing:
            return self._lifted.outputs[self._crossing[node]]
        return self._items[node.name].value if node.op == "placeholder" else node.meta["val"]

    def _has_rows(self, expression: Any) -> bool:
        return expression is not None and self._rows in expression.free_symbols

    def _is_created_by_rows(self, node: fx.Node) -> bool:
        """Return whether a tensor is made out of sizes alone, such as the numbers of the rows."""
        if node.op != "call_function" or any(not _is_size(a) for a in node.all_input_nodes):
            return False
        return any(self._has_rows(getattr(getattr(s, "node", None), "expr", None)) for s in self._value(node).shape)

    def _size(self, tensor: fx.Node, axis: int) -> fx.Node:
        return self._call(_ATEN.sym_size.int, tensor, axis)

    def _call(self, target: Any, *arguments: Any) -> fx.Node:
        return self._graph.call_function(target, arguments)


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), torch.SymInt | int)
