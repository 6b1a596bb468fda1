"""Divides an ONNX training graph of two layers into the parts from which onnx_levels.py assembles any level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.graphs.onnx_pieces import read_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx


@dataclass(frozen=True)
class TwoLayers:
    """A training graph of two layers (or of one, for a model with one layer) and the names of its values.

    Attributes:
        model: the graph.
        slots: the layer of each input that is a layer's tensor, by the input's name.
        gradients: the layer of each gradient, by the output's name; None for the head's.
        hidden: names of the first layer's input and of every layer's output.
        hidden_gradients: names of the gradients with respect to every layer's output.
    """

    model: onnx.ModelProto
    slots: Mapping[str, int]
    gradients: Mapping[str, int | None]
    hidden: Sequence[str]
    hidden_gradients: Sequence[str]


class LayerParts:
    """A training graph of two layers divided into its parts: the nodes of each layer's passes, of the head, and shared.

    Attributes:
        two: the graph of two layers.
        nodes: its nodes; the other attributes hold indexes into them, in order.
        producer: the node that computes each value, by the value's name.
        shared: nodes that depend on no layer.
        forward: the nodes of each layer's forward pass.
        head: the nodes of the loss, and of the head's gradients.
        backward: the nodes of each layer's backward pass.

    Raises:
        ExportError: a layer reads values of another one, so that the layers cannot be separated.
    """

    def __init__(self, two: TwoLayers) -> None:
        self.two = two
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
        """Return the nodes that depend on the first layer's input or a layer's weights; all layers share the others."""
        values = {self.two.hidden[0], *self.two.slots}
        found = set()
        for n, node in enumerate(self.nodes):
            if values & read_by(node):
                values |= set(node.output)
                found.add(n)
        return found

    def _section(self, targets: Iterable[str], stop: str, taken: set[int]) -> list[int]:
        """Return the nodes, in order, that the targets need up to ``stop`` and that are not taken; take them."""
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
        """Check that a layer reads no values of other layers but its input and its output's gradient."""
        two = self.two
        allowed: list[tuple[list[int], set[str]]] = []
        for layer, nodes in enumerate(self.forward):
            own = self.outputs_of(nodes) | {two.hidden[layer], two.hidden[layer + 1]}
            allowed.append((nodes, own))
            allowed.append((self.backward[layer], own | {two.hidden_gradients[layer]}))
        allowed.append((self.head, {two.hidden[-1]}))
        for nodes, values in allowed:
            allowed_here = values | self.outputs_of(nodes)
            for n in nodes:
                for name in read_by(self.nodes[n]) - allowed_here:
                    if name in self.producer and self.producer[name] not in self.shared:
                        raise ExportError(
                            f"a layer of the training graph reads {name} of another layer", "leave out --levels"
                        )

    def outputs_of(self, nodes: Iterable[int]) -> set[str]:
        """Return the outputs of these nodes."""
        return {name for n in nodes for name in self.nodes[n].output if name}
