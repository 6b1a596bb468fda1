"""Assembles the ONNX training graph of any level from one traced with two layers.

The first layer's computation differs from the others', because nothing below it is trained; all layers above it compute
alike. So the second layer's nodes are repeated, with other weights, once per further active layer. One trace and one
conversion then serve every level of a model of any depth.

In the graph of a top level, the lowest trained layer takes the first layer's place, and so do the layers below, of
which only the forward pass is emitted: nothing that they compute is kept. A graph that begins behind a split has no
layers before it: what they give is an input.

Recompute: a layer's forward nodes are repeated in front of its backward nodes, which read the repeated values. Only
hidden states are then kept from the forward pass.

Rescale: a factor s, an input of the graph per slot, multiplies what a layer adds to its input: x + s (layer(x) − x).
With s = 1, that is the layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from export.graphs.onnx_pieces import bodies, cut_onnx, read_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnx import NodeProto

    from export.graphs.layer_parts import LayerParts

_AGAIN = "again"
_SCALE = "scale"
BOUNDARY = "boundary"
"""What LevelGraph.inputs says of the hidden state at which a graph begins."""
_ZERO, _FIRST, _FLAT = "covey_zero", "covey_first", "covey_flat"


@dataclass(frozen=True)
class LevelGraph:
    """The training graph of one level.

    Attributes:
        model: the graph; its outputs are the loss and the gradients.
        inputs: for each input, its name in the graph of two layers (``scale`` for a factor, BOUNDARY for the hidden
            state at which the graph begins) and its slot.
        outputs: the same for each gradient.
        values: type and shape of what each node makes, by name.
    """

    model: onnx.ModelProto
    inputs: dict[str, tuple[str, int | None]]
    outputs: dict[str, tuple[str, int | None]]
    values: dict[str, onnx.ValueInfoProto]


def assemble_level(
    parts: LayerParts, active: int, *, trained: int | None = None, behind: int = 0, recompute: bool, rescale: bool
) -> LevelGraph:
    """Return the training graph of a level.

    Args:
        parts: the parts of a training graph of two layers.
        active: number of layers that run.
        trained: number of layers that are trained, the last ones; None: all that run.
        behind: number of layers that are left out, the first ones: none of them is trained.
        recompute: whether layers are computed again for their backward pass; the last layer never is, because its
            backward pass follows at once.
        rescale: whether a factor per slot multiplies what a layer adds to its input.
    """
    below = 0 if trained is None else active - trained
    return _Assembly(parts, active, below, behind, recompute=recompute, rescale=rescale).run()


class _Assembly:
    """Assembles the graph of one level."""

    def __init__(
        self, parts: LayerParts, active: int, below: int, behind: int, *, recompute: bool, rescale: bool
    ) -> None:
        self._parts, self._two = parts, parts.two
        self._active, self._below, self._recompute, self._rescale = active, below, recompute, rescale
        self._behind = behind
        self._made: list[NodeProto] = []
        self._inputs: dict[str, tuple[str, int | None]] = {}
        self._outputs: dict[str, tuple[str, int | None]] = {}
        self._values = {v.name: v for v in (*parts.two.model.graph.input, *parts.two.model.graph.output)}
        self._values[_SCALE] = onnx.helper.make_tensor_value_info(_SCALE, onnx.TensorProto.FLOAT, [1])
        self._inputs_of_two = {value.name for value in parts.two.model.graph.input}
        self._emitted: set[int] = set()
        self._origin: dict[str, str] = {}

    def run(self) -> LevelGraph:
        """Emit the forward pass, the head and the backward pass, in that order."""
        two, parts, top = self._two, self._parts, self._active - 1
        if self._behind:
            self._values[BOUNDARY] = self._hidden_value()
            self._inputs[_hidden(self._behind)] = (BOUNDARY, None)
        for slot in range(self._behind, self._active):
            self._emit(parts.forward[self._layer(slot)], self._forward_names(slot), slot)
            if self._rescale:
                self._emit_rescaled(slot)
        head = {two.hidden[-1]: _hidden(self._active), two.hidden_gradients[-1]: _hidden_gradient(top)}
        self._emit(parts.head, head)
        self._outputs |= {name: (name, None) for name, layer in two.gradients.items() if layer is None}
        for slot in range(top, self._below - 1, -1):
            again = self._recompute and slot < top
            if again:
                self._emit_again(slot)
            layer = self._layer(slot)
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

    def _hidden_value(self) -> onnx.ValueInfoProto:
        """Return the type and shape of a hidden state."""
        graph = self._two.model.graph
        return next(value for value in (*graph.value_info, *graph.output) if value.name == self._two.hidden[-1])

    def _layer(self, slot: int) -> int:
        """Return the traced layer whose nodes a slot repeats: the first for the lowest trained slot, and below it."""
        return min(max(slot - self._below, 0), 1)

    def _entry(self, slot: int) -> str:
        return _hidden(slot) if slot else self._two.hidden[0]

    def _own_names(self, nodes: Iterable[int], suffix: str) -> dict[str, str]:
        return {name: f"{name}_{suffix}" for name in self._parts.outputs_of(nodes)}

    def _forward_names(self, slot: int, again: str = "") -> dict[str, str]:
        """Return the names in a slot of a layer's values, weights and boundaries."""
        two, layer = self._two, self._layer(slot)
        names = self._own_names(self._parts.forward[layer], f"forward_{slot}{again}")
        names |= {name: f"{name}_slot_{slot}" for name, of in two.slots.items() if of == layer}
        names[two.hidden[layer]] = self._entry(slot) + again
        names[two.hidden[layer + 1]] = self._exit(slot) + (f"_{again}" if again else "")
        return names

    def _exit(self, slot: int) -> str:
        """Return the name of the output of a slot's layer, before any rescaling."""
        return f"{_hidden(slot + 1)}_unscaled" if self._rescale else _hidden(slot + 1)

    def _gradient_through(self, slot: int) -> str:
        """Return the name of the gradient with respect to a slot's input, as far as it flows through the layer."""
        return f"gradient_through_{slot}" if self._rescale else _hidden_gradient(slot - 1)

    def _node(self, kind: str, values: Sequence[str], result: str) -> None:
        self._made.append(onnx.helper.make_node(kind, values, [result]))

    def _emit_rescaled(self, slot: int) -> None:
        """Emit x + s (layer(x) − x)."""
        entry, scale, added = self._entry(slot), f"{_SCALE}_{slot}", f"added_{slot}"
        self._inputs[scale] = (_SCALE, slot)
        self._node("Sub", [self._exit(slot), entry], added)
        self._node("Mul", [added, scale], f"{added}_scaled")
        self._node("Add", [entry, f"{added}_scaled"], _hidden(slot + 1))

    def _emit_scaled_gradient(self, slot: int) -> str:
        """Emit the gradient that enters a layer's backward pass, and return its name."""
        gradient = _hidden_gradient(slot)
        if not self._rescale:
            return gradient
        self._node("Mul", [gradient, f"{_SCALE}_{slot}"], f"{gradient}_scaled")
        return f"{gradient}_scaled"

    def _emit_gradient_past(self, slot: int) -> None:
        """Emit the gradient with respect to a slot's input: through the layer, plus (1 − s) times the one past it."""
        gradient = _hidden_gradient(slot)
        self._node("Sub", [gradient, f"{gradient}_scaled"], f"{gradient}_past")
        self._node("Add", [self._gradient_through(slot), f"{gradient}_past"], _hidden_gradient(slot - 1))

    def _emit_again(self, slot: int) -> None:
        """Emit a layer's forward nodes again, on a copy of its input that depends on the gradient of its output.

        The copy is the input plus zero times one element of the gradient. Without it, a runtime would merge the two
        equal computations and keep the first one's values, or run both at the beginning.
        """
        entry, gradient = self._entry(slot), _hidden_gradient(slot)
        made = [
            onnx.helper.make_node("Reshape", [gradient, _FLAT], [f"{gradient}_flat"]),
            onnx.helper.make_node("Gather", [f"{gradient}_flat", _FIRST], [f"{gradient}_first"]),
            onnx.helper.make_node("Mul", [f"{gradient}_first", _ZERO], [f"{gradient}_zero"]),
            onnx.helper.make_node("Add", [entry, f"{gradient}_zero"], [entry + _AGAIN]),
        ]
        self._made += made
        self._emit(self._parts.forward[self._layer(slot)], self._forward_names(slot, _AGAIN), slot)

    def _emit(self, nodes: Iterable[int], names: Mapping[str, str], slot: int | None = None) -> None:
        """Emit nodes under other names, each preceded by the shared nodes that it needs."""
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
            self._origin |= dict(zip(made.output, parts.nodes[n].output, strict=True))
            self._made.append(made)
            self._inputs |= {
                names.get(name, name): (name, slot if name in self._two.slots else None)
                for name in read
                if name in self._inputs_of_two
            }

    def _finish(self) -> LevelGraph:
        two, graph = self._two, self._two.model.graph
        outputs = ["loss", *self._outputs]
        for n, node in enumerate(self._made):
            # ONNX Runtime 1.18 to 1.21 names what it fuses after the nodes, and refuses two of one name.
            node.name = f"n{n}"
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
        # This cut drops recomputed nodes that only the layer's output needs.
        return LevelGraph(cut_onnx(whole, outputs, []), self._inputs, self._outputs, self._described())

    def _described(self) -> dict[str, onnx.ValueInfoProto]:
        """Return type and shape of what each node makes; what only the assembly makes is at most a hidden state."""
        graph = self._two.model.graph
        known = {value.name: value for value in (*graph.value_info, *graph.output)}
        hidden = self._two.hidden[-1]
        made = (name for node in self._made for name in node.output if name)
        found = ((name, known.get(self._origin.get(name, hidden))) for name in made)
        return {name: value for name, value in found if value is not None}


def _hidden(index: int) -> str:
    """Return the name of the input of slot ``index``, which is the output of the slot below."""
    return f"into_{index}"


def _hidden_gradient(slot: int) -> str:
    """Return the name of the gradient with respect to a slot's output."""
    return f"gradient_out_of_{slot}"


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(value)
    made.name = name
    return made


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename values in a node, and those that the graphs inside it read from outside."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)} | {o for n in body.node for o in n.output}
        inner = {name: new for name, new in names.items() if name not in own}
        for part in body.node:
            _rename(part, inner)
        for value in body.output:
            value.name = inner.get(value.name, value.name)
