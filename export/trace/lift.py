"""Graph surgery, first half: an exported program with all weights as inputs, and the tensors at its cuts as outputs.

torch.export gives a functional graph whose parameters are placeholders, and every node knows the module it came from.
So no model is rewritten: nodes up to the last one of the layers below a split are that split's front, the rest is its
back, and what crosses (hidden states, the mask, rotary tables) becomes an output. onnx_graphs.py, the second half,
takes the pieces apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from export.errors import ExportError
from export.model.names import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.export import ExportedProgram

InputKind = Literal["parameter", "batch"]


@dataclass(frozen=True)
class LiftedInput:
    """An input: its name in the graph, what it is, its name in the program, and its fake value."""

    name: str
    kind: InputKind
    source: str
    value: Any


@dataclass(frozen=True)
class Lifted:
    """A program as a plain module.

    Attributes:
        module: takes ``inputs`` by position; gives the loss, the task's outputs and then every boundary tensor.
        inputs: parameters and batch tensors.
        outputs: names of the outputs, with their fake values.
        boundaries: for each split the names of the outputs that cross it.
        back_parameters: for each split the parameters that its back may use, by their name in the program.
    """

    module: fx.GraphModule
    inputs: list[LiftedInput]
    outputs: dict[str, Any]
    boundaries: dict[int, list[str]]
    back_parameters: dict[int, set[str]]


def lift(program: ExportedProgram, splits: list[int], answers: list[str]) -> Lifted:
    """Lift the weights of a program, and find what crosses each split.

    Args:
        program: its outputs are the loss and then ``answers``.
        splits: layer indexes.
        answers: names of the task's outputs; see manifest.output_names.

    Raises:
        ExportError: no operation of the program belongs to a layer below a split.
    """
    crossing = {split: _crossing(program, split) for split in splits}
    boundary: dict[fx.Node, str] = {}
    for nodes, _ in crossing.values():
        for node in nodes:
            boundary.setdefault(node, f"boundary_{len(boundary)}")
    outputs = dict(zip(["loss", *answers], _outputs(program), strict=True)) | {
        name: node for node, name in boundary.items()
    }
    module, inputs = as_module(program, list(outputs.values()))
    return Lifted(
        module=module,
        inputs=inputs,
        outputs={name: node.meta["val"] for name, node in outputs.items()},
        boundaries={split: [boundary[node] for node in nodes] for split, (nodes, _) in crossing.items()},
        back_parameters={split: parameters for split, (_, parameters) in crossing.items()},
    )


def node_layer(node: fx.Node) -> int | None:
    """Return the transformer layer that a node came from, or None."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if (layer := layer_of(str(path))) is not None:
            return layer
    return None


def _crossing(program: ExportedProgram, split: int) -> tuple[list[fx.Node], set[str]]:
    """Return the tensors that cross a split, in graph order, and the parameters used behind it."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    below = [index for index, node in enumerate(nodes) if (layer := node_layer(node)) is not None and layer < split]
    if not below:
        raise ExportError(f"no operation belongs to a layer below {split}", "this architecture cannot be cut there")
    front = set(nodes[: max(below) + 1])
    back = _needed(_outputs(program), front)
    # Sizes may cross too: every piece reads them from the batch.
    crossing = [
        node
        for node in nodes
        if node in front
        and isinstance(node.meta.get("val"), torch.Tensor)
        and any(user in back and not isinstance(user.meta.get("val"), torch.SymInt) for user in node.users)
    ]
    names = program.graph_signature.inputs_to_parameters
    return crossing, {names[n.name] for node in back for n in node.all_input_nodes if n.name in names}


def _outputs(program: ExportedProgram) -> list[fx.Node]:
    output = next(node for node in program.graph.nodes if node.op == "output")
    return list(output.args[0])


def _needed(outputs: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """Return the operations that the outputs need, without going into ``stop``."""
    found: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in found or node in stop or node.op != "call_function":
            continue
        found.add(node)
        waiting += node.all_input_nodes
    return found


def as_module(
    program: ExportedProgram, outputs: list[fx.Node], batch_names: Sequence[str] | None = None
) -> tuple[fx.GraphModule, list[LiftedInput]]:
    """Return a module that computes the outputs, without the program's assertions; buffers become its constants.

    Args:
        program: what was traced.
        outputs: nodes of its graph.
        batch_names: names of the program's own inputs, in order; None: as the program names them.
    """
    signature = program.graph_signature
    batch = dict(zip(signature.user_inputs, batch_names or signature.user_inputs, strict=True))
    needed = _needed(outputs, set())
    used = {argument for node in needed for argument in node.all_input_nodes}
    graph, root = fx.Graph(), torch.nn.Module()
    made: dict[fx.Node, fx.Node] = {}
    inputs: list[LiftedInput] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node in used:
            if node.name in signature.inputs_to_parameters:
                name = f"w{len(inputs)}"
                inputs.append(
                    LiftedInput(name, "parameter", signature.inputs_to_parameters[node.name], node.meta["val"])
                )
                made[node] = graph.placeholder(name)
            elif node.name in batch:
                name = batch[node.name]
                inputs.append(LiftedInput(name, "batch", name, node.meta["val"]))
                made[node] = graph.placeholder(name)
            else:
                name = f"constant_{len(made)}"
                root.register_buffer(name, _constant(program, node.name))
                made[node] = graph.get_attr(name)
        elif node.op == "get_attr" and node in used:  # the body of a scan
            root.add_module(str(node.target), getattr(program.graph_module, str(node.target)))
            made[node] = graph.get_attr(str(node.target))
        elif node in needed:
            made[node] = graph.node_copy(node, lambda argument: made[argument])
    graph.output(tuple(made[node] for node in outputs))
    return fx.GraphModule(root, graph), inputs


def _constant(program: ExportedProgram, name: str) -> torch.Tensor:
    signature = program.graph_signature
    target = signature.inputs_to_buffers.get(name) or signature.inputs_to_lifted_tensor_constants[name]
    stored = program.state_dict.get(target)
    return program.constants[target] if stored is None else stored
