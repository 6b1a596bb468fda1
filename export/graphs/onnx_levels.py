"""Graph surgery on a training graph: from two layers to any number of them.

A training graph is traced with two layers. What the first one computes differs from the others (nothing below it is
trained), all above it are alike. So the second layer's nodes are repeated, with other weights, as often as there are
further active layers: one trace and one conversion serve every level of a model of any depth.

Recomputing: a layer's forward nodes stand in the graph again, in front of its backward nodes, which read their values.
Only hidden states are then kept from the forward pass.

Rescaling: what a layer adds to its input counts by a factor that is an input of the graph, one a slot:
x + s (layer(x) − x). For s = 1 that is the layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from export.errors import ExportError
from export.graphs.onnx_pieces import bodies, piece, read_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import NodeProto

_AGAIN = "again"
_SCALE = "scale"
_ZERO, _FIRST, _FLAT = "covey_zero", "covey_first", "covey_flat"


@dataclass(frozen=True)
class TwoLayers:
    """A training graph of two layers (or one, of a model with one) and the names of what matters in it.

    Attributes:
        model: the graph.
        slots: by input, the layer that the tensor belongs to; others belong to none.
        gradients: by output, the layer that the gradient belongs to, None for the head's.
        hidden: names of the first layer's input, and of every layer's output.
        hidden_gradients: names of the gradients with respect to every layer's output.
    """

    model: onnx.ModelProto
    slots: Mapping[str, int]
    gradients: Mapping[str, int | None]
    hidden: Sequence[str]
    hidden_gradients: Sequence[str]


@dataclass(frozen=True)
class Level:
    """A graph with so many active layers.

    Attributes:
        model: the graph; its outputs are the loss and the gradients.
        inputs: by input, its name in the graph of two layers (``scale`` for a factor), and its slot.
        outputs: the same of each gradient.
    """

    model: onnx.ModelProto
    inputs: dict[str, tuple[str, int | None]]
    outputs: dict[str, tuple[str, int | None]]


class Assembler:
    """Knows the parts of a training graph of two layers, and puts them together for any level.

    Raises:
        ExportError: the layers cannot be told apart.
    """

    def __init__(self, two: TwoLayers) -> None:
        self._two = two
        self.nodes = list(two.model.graph.node)
        self.producer = {name: n for n, node in enumerate(self.nodes) for name in node.output if name}
        layered = self._layered()
        self.shared = set(range(len(self.nodes))) - layered
        taken = set(self.shared)
        last = len(two.hidden) - 2
        self.forward: list[list[int]] = []
        for layer in range(last + 1):
            self.forward.append(self._section([two.hidden[layer + 1]], two.hidden[layer], taken))
        head = [name for name, layer in two.gradients.items() if layer is None]
        self.head = self._section(["loss", two.hidden_gradients[last], *head], two.hidden[last + 1], taken)
        self.backward: list[list[int]] = [[] for _ in self.forward]
        for layer in range(last, -1, -1):
            targets = [name for name, of in two.gradients.items() if of == layer]
            targets += [two.hidden_gradients[layer - 1]] if layer else []
            self.backward[layer] = self._section(targets, two.hidden_gradients[layer], taken)
        self._check()

    def _layered(self) -> set[int]:
        """Return the nodes that depend on the first layer's input or on a layer's weights; layers share the others."""
        values = {self._two.hidden[0], *self._two.slots}
        found = set()
        for n, node in enumerate(self.nodes):
            if values & read_by(node):
                values |= set(node.output)
                found.add(n)
        return found

    def _section(self, targets: Iterable[str], stop: str, taken: set[int]) -> list[int]:
        """Return the nodes that the targets need, in order, without those behind ``stop`` or taken; take them."""
        found: set[int] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            n = self.producer.get(name)
            if name == stop or n is None or n in found or n in taken:
                continue
            found.add(n)
            waiting += read_by(self.nodes[n])
        taken |= found
        return sorted(found)

    def _check(self) -> None:
        """Check that a layer's nodes read nothing of another layer but its output, or the gradient of its own."""
        two = self._two
        allowed: list[tuple[list[int], set[str]]] = []
        for layer, nodes in enumerate(self.forward):
            own = self.outputs_of(nodes) | {two.hidden[layer], two.hidden[layer + 1]}
            allowed.append((nodes, own))
            allowed.append((self.backward[layer], own | {two.hidden_gradients[layer]}))
        allowed.append((self.head, {two.hidden[-1]}))
        for nodes, values in allowed:
            values |= self.outputs_of(nodes)  # noqa: PLW2901 a set of its own
            for n in nodes:
                for name in read_by(self.nodes[n]) - values:
                    if name in self.producer and self.producer[name] not in self.shared:
                        raise ExportError(
                            f"the layers cannot be told apart in the training graph ({name})", "export without --levels"
                        )

    def outputs_of(self, nodes: Iterable[int]) -> set[str]:
        """Return what these nodes give."""
        return {name for n in nodes for name in self.nodes[n].output if name}

    def level(self, level: int, *, recompute: bool, rescale: bool = False) -> Level:
        """Return the graph with so many active layers.

        Args:
            level: how many.
            recompute: whether layers are computed again for their backward pass. The last one never is: it would be
                computed again at once.
            rescale: whether what layers add to their inputs has factors.
        """
        return _Assembly(self._two, self, level, recompute=recompute, rescale=rescale).run()


class _Assembly:
    """One level being put together."""

    def __init__(self, two: TwoLayers, parts: Assembler, level: int, *, recompute: bool, rescale: bool) -> None:
        self._two, self._parts, self._level, self._recompute, self._rescale = two, parts, level, recompute, rescale
        self._made: list[NodeProto] = []
        self._inputs: dict[str, tuple[str, int | None]] = {}
        self._outputs: dict[str, tuple[str, int | None]] = {}
        self._values = {v.name: v for v in (*two.model.graph.input, *two.model.graph.output)}
        self._values[_SCALE] = onnx.helper.make_tensor_value_info(_SCALE, onnx.TensorProto.FLOAT, [1])
        self._inputs_of_two = {value.name for value in two.model.graph.input}
        self._emitted: set[int] = set()

    def run(self) -> Level:
        two, parts, top = self._two, self._parts, self._level - 1
        for slot in range(self._level):
            self._emit(parts.forward[min(slot, 1)], self._forward_names(slot), slot)
            if self._rescale:
                self._emit_rescaled(slot)
        head = {two.hidden[-1]: _hidden(self._level), two.hidden_gradients[-1]: _hidden_gradient(top)}
        self._emit(parts.head, head)
        self._outputs |= {name: (name, None) for name, layer in two.gradients.items() if layer is None}
        for slot in range(top, -1, -1):
            again = self._recompute and slot < top
            if again:
                self._emit_again(slot)
            layer = min(slot, 1)
            names = self._forward_names(slot, _AGAIN if again else "")
            names |= self._own_names(parts.backward[layer], f"backward_{slot}")
            names[two.hidden_gradients[layer]] = self._emit_scaled_gradient(slot)
            if layer:
                names[two.hidden_gradients[0]] = self._gradient_through(slot)
            for name, of in two.gradients.items():
                if of == layer:
                    names[name] = f"{name}_{slot}"
                    self._outputs[names[name]] = (name, slot)
            self._emit(parts.backward[layer], names, slot)
            if layer and self._rescale:
                self._emit_gradient_past(slot)
        return self._finish()

    def _entry(self, slot: int) -> str:
        return _hidden(slot) if slot else self._two.hidden[0]

    def _own_names(self, nodes: Iterable[int], suffix: str) -> dict[str, str]:
        return {name: f"{name}_{suffix}" for name in self._parts.outputs_of(nodes)}

    def _forward_names(self, slot: int, again: str = "") -> dict[str, str]:
        """Return what a layer's values, weights and boundaries are called in a slot."""
        two, layer = self._two, min(slot, 1)
        names = self._own_names(self._parts.forward[layer], f"forward_{slot}{again}")
        names |= {name: f"{name}_slot_{slot}" for name, of in two.slots.items() if of == layer}
        names[two.hidden[layer]] = self._entry(slot) + again
        names[two.hidden[layer + 1]] = self._exit(slot) + (f"_{again}" if again else "")
        return names

    def _exit(self, slot: int) -> str:
        """Name of what a slot's layer itself gives."""
        return f"{_hidden(slot + 1)}_unscaled" if self._rescale else _hidden(slot + 1)

    def _gradient_through(self, slot: int) -> str:
        """Name of the gradient with respect to what goes into a slot, by way of its layer."""
        return f"gradient_through_{slot}" if self._rescale else _hidden_gradient(slot - 1)

    def _node(self, kind: str, values: Sequence[str], result: str) -> None:
        self._made.append(onnx.helper.make_node(kind, values, [result]))

    def _emit_rescaled(self, slot: int) -> None:
        """Add s times what the layer adds to its input to that input."""
        entry, scale, added = self._entry(slot), f"{_SCALE}_{slot}", f"added_{slot}"
        self._inputs[scale] = (_SCALE, slot)
        self._node("Sub", [self._exit(slot), entry], added)
        self._node("Mul", [added, scale], f"{added}_scaled")
        self._node("Add", [entry, f"{added}_scaled"], _hidden(slot + 1))

    def _emit_scaled_gradient(self, slot: int) -> str:
        """Return the name of the gradient that goes into a layer's backward pass."""
        gradient = _hidden_gradient(slot)
        if not self._rescale:
            return gradient
        self._node("Mul", [gradient, f"{_SCALE}_{slot}"], f"{gradient}_scaled")
        return f"{gradient}_scaled"

    def _emit_gradient_past(self, slot: int) -> None:
        """Add the part of the gradient that does not go through the layer: 1 − s of it."""
        gradient = _hidden_gradient(slot)
        self._node("Sub", [gradient, f"{gradient}_scaled"], f"{gradient}_past")
        self._node("Add", [self._gradient_through(slot), f"{gradient}_past"], _hidden_gradient(slot - 1))

    def _emit_again(self, slot: int) -> None:
        """Compute a layer again, from a copy of its input that waits for the gradient of its output.

        The copy is the input plus zero times a number of the gradient. Without that, a runtime would find the two
        computations equal and keep the first one's values, or compute both at the beginning.
        """
        entry, gradient = self._entry(slot), _hidden_gradient(slot)
        made = [
            onnx.helper.make_node("Reshape", [gradient, _FLAT], [f"{gradient}_flat"]),
            onnx.helper.make_node("Gather", [f"{gradient}_flat", _FIRST], [f"{gradient}_first"]),
            onnx.helper.make_node("Mul", [f"{gradient}_first", _ZERO], [f"{gradient}_zero"]),
            onnx.helper.make_node("Add", [entry, f"{gradient}_zero"], [entry + _AGAIN]),
        ]
        self._made += made
        self._emit(self._parts.forward[min(slot, 1)], self._forward_names(slot, _AGAIN), slot)

    def _emit(self, nodes: Iterable[int], names: Mapping[str, str], slot: int | None = None) -> None:
        """Add nodes under other names, and before each what it needs that all layers share."""
        parts = self._parts
        for n in nodes:
            read = read_by(parts.nodes[n])
            for name in read:
                shared = parts.producer.get(name)
                if shared in parts.shared and shared not in self._emitted:
                    self._emitted.add(shared)
                    self._emit([shared], {})
            made = copy.deepcopy(parts.nodes[n])
            _rename(made, names)
            made.name = ""
            self._made.append(made)
            for name in read & self._inputs_of_two:
                self._inputs[names.get(name, name)] = (name, slot if name in self._two.slots else None)

    def _finish(self) -> Level:
        two, graph = self._two, self._two.model.graph
        outputs = ["loss", *self._outputs]
        sources = {"loss": "loss"} | {name: source for name, (source, _) in self._outputs.items()}
        made = onnx.helper.make_graph(
            self._made,
            "covey",
            inputs=[_named(self._values[source], name) for name, (source, _) in self._inputs.items()],
            outputs=[_named(self._values[sources[name]], name) for name in outputs],
            initializer=[
                *graph.initializer,
                onnx.helper.make_tensor(_FLAT, onnx.TensorProto.INT64, [1], [-1]),
                onnx.helper.make_tensor(_FIRST, onnx.TensorProto.INT64, [1], [0]),
                onnx.helper.make_tensor(_ZERO, onnx.TensorProto.FLOAT, [1], [0.0]),
            ],
        )
        whole = onnx.helper.make_model(made, opset_imports=two.model.opset_import, functions=two.model.functions)
        whole.ir_version = two.model.ir_version
        # What a layer computes again for nothing but its output goes here.
        return Level(piece(whole, outputs, []), self._inputs, self._outputs)


def _hidden(index: int) -> str:
    """Name of what goes into slot ``index``, which is what comes out of the one below."""
    return f"into_{index}"


def _hidden_gradient(slot: int) -> str:
    """Name of the gradient with respect to what comes out of a slot."""
    return f"gradient_out_of_{slot}"


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(value)
    made.name = name
    return made


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename values in a node, and in the graphs inside it where they come from outside."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)} | {o for n in body.node for o in n.output}
        inner = {name: new for name, new in names.items() if name not in own}
        for part in body.node:
            _rename(part, inner)
        for value in body.output:
            value.name = inner.get(value.name, value.name)
