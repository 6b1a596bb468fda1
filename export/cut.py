"""Graph surgery: cut an exported program at a layer boundary into a front and a back, with all weights as inputs.

torch.export gives a functional graph whose parameters are placeholders, and every node knows the module that it came
from. So no model is rewritten: nodes up to the last one of the layers below the split are the front, the rest is the
back, and what crosses (hidden states, the mask, rotary tables) becomes an output of one and an input of the other.
Sizes that cross are read again from the shape of an input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from export.errors import ExportError
from export.lora import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.export import ExportedProgram

PartInputKind = Literal["parameter", "batch", "boundary"]


@dataclass(frozen=True)
class PartInput:
    """An input of a part: its name in the part, what it is, the name of its source, and its fake value."""

    name: str
    kind: PartInputKind
    source: str
    value: Any


@dataclass(frozen=True)
class Part:
    """One piece of the program as a module of its own: inputs are positional, in the order of ``inputs``."""

    module: fx.GraphModule
    inputs: list[PartInput]
    outputs: list[str]
    output_values: list[Any]


def node_layer(node: fx.Node) -> int | None:
    """Return the transformer layer that a node came from, or None."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if (layer := layer_of(str(path))) is not None:
            return layer
    return None


def cut(program: ExportedProgram, split: int) -> tuple[Part, Part]:
    """Cut a program with outputs (loss, logits) in front of layer ``split``.

    Returns:
        The front, whose outputs are the boundary tensors, and the back, whose outputs are ``loss`` and ``logits``.

    Raises:
        ExportError: no node of the program belongs to a layer below the split.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    below = [index for index, node in enumerate(nodes) if (layer := node_layer(node)) is not None and layer < split]
    if not below:
        raise ExportError(f"no operation belongs to a layer below {split}", "this architecture cannot be cut there")
    front = set(nodes[: max(below) + 1])
    outputs = _outputs(program)
    back = _needed(outputs, frozenset(front))
    crossing = [
        node
        for node in nodes
        if node in front and _is_tensor(node) and any(u in back and not _is_plain_size(u) for u in node.users)
    ]
    boundary = {node: f"boundary_{index}" for index, node in enumerate(crossing)}
    return (
        _extract(program, [(name, node) for node, name in boundary.items()], {}),
        _extract(program, list(zip(("loss", "logits"), outputs, strict=True)), boundary),
    )


def whole(program: ExportedProgram) -> Part:
    """Return the whole program as one part with the output ``logits``."""
    return _extract(program, [("logits", _outputs(program)[1])], {})


def _outputs(program: ExportedProgram) -> list[fx.Node]:
    output = next(node for node in program.graph.nodes if node.op == "output")
    return list(output.args[0])


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_plain_size(node: fx.Node) -> bool:
    """Whether a node is one symbolic size, which any input that has it can give."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and bool(value.node.expr.is_symbol)


def _needed(outputs: Iterable[fx.Node], stop: frozenset[fx.Node]) -> set[fx.Node]:
    """Return the operations that the outputs need, without going into ``stop``."""
    found: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in found or node in stop or node.op != "call_function":
            continue
        found.add(node)
        if not _is_plain_size(node):
            waiting += node.all_input_nodes
    return found


@dataclass
class _Builder:
    """Builds the graph of one part; nodes of the old graph become nodes of the new one when they are asked for."""

    program: ExportedProgram
    boundary: dict[fx.Node, str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: list[PartInput] = field(default_factory=list)
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def add_placeholder(self, node: fx.Node, kind: PartInputKind, name: str, source: str) -> None:
        made = self.graph.placeholder(name)
        made.meta["val"] = node.meta["val"]
        self.made[node] = made
        self.inputs.append(PartInput(name, kind, source, node.meta["val"]))

    def add_input(self, node: fx.Node) -> None:
        """Make a placeholder (a parameter or a batch tensor) or a constant (a buffer) of a program's input."""
        signature = self.program.graph_signature
        if node.name in signature.inputs_to_parameters:
            name = f"w{len(self.inputs)}"
            self.add_placeholder(node, "parameter", name, signature.inputs_to_parameters[node.name])
        elif node.name in signature.user_inputs:
            self.add_placeholder(node, "batch", node.name, node.name)
        else:
            target = (
                signature.inputs_to_buffers.get(node.name) or (signature.inputs_to_lifted_tensor_constants[node.name])
            )
            value = self.program.state_dict.get(target)
            if value is None:
                value = self.program.constants[target]
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
            self.made[node] = self.graph.get_attr(name)

    def add_operation(self, node: fx.Node) -> None:
        if _is_plain_size(node):
            self.made[node] = self._size_of_input(node)
            return
        self.made[node] = self.graph.node_copy(node, lambda argument: self.made[argument])

    def _size_of_input(self, node: fx.Node) -> fx.Node:
        """Return a node that reads a plain symbolic size from the shape of one of the part's inputs."""
        wanted = node.meta["val"].node.expr
        for source in self.inputs:
            if source.kind == "parameter":
                continue
            for dim, size in enumerate(source.value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr == wanted:
                    tensor = next(n for n in self.graph.nodes if n.op == "placeholder" and n.name == source.name)
                    made = self.graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
                    made.meta["val"] = node.meta["val"]
                    return made
        raise ExportError(f"the size {wanted} does not reach the part that needs it", "this model cannot be cut there")


def _extract(program: ExportedProgram, outputs: list[tuple[str, fx.Node]], boundary: dict[fx.Node, str]) -> Part:
    """Build a module that computes the outputs; nodes in ``boundary`` are its inputs."""
    builder = _Builder(program, boundary)
    stop = frozenset(boundary)
    needed = _needed((node for _, node in outputs), stop)
    used = {argument for node in needed if not _is_plain_size(node) for argument in node.all_input_nodes}
    used |= {node for _, node in outputs}
    # Sizes are read from inputs: where nothing crosses into the part, the token ids have them all.
    first_batch_input = None if boundary else program.graph_signature.user_inputs[0]
    ordered = list(program.graph.nodes)
    for node in ordered:
        if node.op == "placeholder" and (node in used or node.name == first_batch_input):
            builder.add_input(node)
    for node, name in boundary.items():
        if node in used:
            builder.add_placeholder(node, "boundary", name, name)
    for node in ordered:
        if node in needed:
            builder.add_operation(node)
    builder.graph.output(tuple(builder.made[node] for _, node in outputs))
    root = torch.nn.Module()
    for name, value in builder.constants.items():
        root.register_buffer(name, value)
    builder.graph.eliminate_dead_code()
    module = fx.GraphModule(root, builder.graph)
    return _drop_unused(
        Part(module, builder.inputs, [name for name, _ in outputs], [node.meta["val"] for _, node in outputs])
    )


def _drop_unused(part: Part) -> Part:
    """Remove placeholders that nothing reads (a batch tensor that was only a candidate for sizes)."""
    unused = {node.name for node in part.module.graph.nodes if node.op == "placeholder" and not node.users}
    for node in list(part.module.graph.nodes):
        if node.name in unused:
            part.module.graph.erase_node(node)
    part.module.recompile()
    inputs = [item for item in part.inputs if item.name not in unused]
    return Part(part.module, inputs, part.outputs, part.output_values)
