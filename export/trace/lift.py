"""Lifts an exported program's weights to inputs, and the tensors that cross its splits to outputs.

torch.export yields a functional graph whose parameters are placeholders and whose nodes know the module they came from.
So no model is rewritten. The nodes up to the last one of the layers below a split are that split's front, and the rest
are its back. The tensors that cross (hidden states, the mask, rotary tables) become outputs. This is the first half of
the graph surgery; graphs/onnx_pieces.py, the second half, cuts the result into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from export.errors import ExportError
from export.model.names import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch.export import ExportedProgram

InputKind = Literal["parameter", "batch"]


@dataclass(frozen=True)
class LiftedInput:
    """An input of a lifted program.

    Attributes:
        name: its name in the module's graph.
        kind: whether it is a parameter or a tensor of the batch.
        source: the parameter's name in the program, or the batch tensor's name.
        value: its fake value: element type and sizes, some of them symbols.
    """

    name: str
    kind: InputKind
    source: str
    value: Any


@dataclass(frozen=True)
class Lifted:
    """A program as a plain module.

    Attributes:
        module: takes ``inputs`` by position and returns ``outputs`` in order.
        inputs: parameters and batch tensors.
        outputs: the fake value of each output, by name.
        state: the program's parameters and buffers by their name in the program, detached, sharing the model's data.
        boundaries: for each split, the names of the outputs that cross it.
        back_parameters: for each split, the parameters that its back may use, by their name in the program.
    """

    module: fx.GraphModule
    inputs: list[LiftedInput]
    outputs: dict[str, Any]
    state: dict[str, torch.Tensor]
    boundaries: dict[int, list[str]]
    back_parameters: dict[int, set[str]]

    def examples(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a tensor for each input, by the input's name: a parameter's value, or a tensor of the batch."""
        return {
            item.name: self.state[item.source] if item.kind == "parameter" else batch[item.source]
            for item in self.inputs
        }


def lift(program: ExportedProgram, splits: list[int], answers: list[str]) -> Lifted:
    """Lift the weights of a program, and find the tensors that cross each split.

    Args:
        program: the traced program, whose outputs are the loss and then ``answers``.
        splits: index of the back block's first layer, for each split.
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
        state=program_state(program),
        boundaries={split: [boundary[node] for node in nodes] for split, (nodes, _) in crossing.items()},
        back_parameters={split: parameters for split, (_, parameters) in crossing.items()},
    )


def program_state(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return a program's parameters and buffers by name, detached; they share their data with the model."""
    return {name: tensor.detach() for name, tensor in program.state_dict.items()}


def node_layer(node: fx.Node) -> int | None:
    """Return the transformer layer that a node came from; None for a node outside the layers."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if (layer := layer_of(str(path))) is not None:
            return layer
    return None


def _crossing(program: ExportedProgram, split: int) -> tuple[list[fx.Node], set[str]]:
    """Return the tensors that cross a split, in graph order, and the parameters that its back uses."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    below = [index for index, node in enumerate(nodes) if (layer := node_layer(node)) is not None and layer < split]
    if not below:
        raise ExportError(f"no operation belongs to a layer below {split}", "choose another --split")
    front = set(nodes[: max(below) + 1])
    back = _needed(_outputs(program), front)
    # Symbolic sizes may cross without becoming outputs: every piece reads them from the batch.
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
    """Return the operations that the outputs depend on, without those in ``stop`` and what only they depend on."""
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
    """Return a module that computes some outputs of a program, and its inputs in order.

    The program's assertions are left out, and its buffers become constants of the module.

    Args:
        program: the traced program.
        outputs: nodes of its graph.
        batch_names: names for the program's own inputs, in order; None keeps the program's names.
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
