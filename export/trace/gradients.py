"""Traces a model's loss and gradients with some of its layers, as one program for inference runtimes.

The model is reduced to k of its layers and traced, and the traced program is differentiated
(``torch.export.experimental._export_forward_backward``) into a graph of plain ATen operations with dynamic sizes. Its
weights are inputs, so that any k layers can be bound to it. Tracing the first k layers therefore serves every choice.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.export.experimental import _export_forward_backward
from transformers import PreTrainedModel

from export.errors import ExportError
from export.model.address import address_of
from export.model.completion import CompletionGradient, CompletionLoss
from export.quiet import quiet
from export.trace.batches import size_bounds, sizes, traced_batch
from export.trace.layer_marks import marked, take_marks
from export.trace.lift import Lifted, as_module, program_state
from export.trace.loss import forget_traces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from torch import fx
    from torch.export import ExportedProgram

    from export.model.address import Address
    from export.model.build import ExportModel

_LAYER_LIST = re.compile(r"(^|\.)layers?$")
_DIFFERENTIABLE_ATTENTION = "eager"
"""The fused implementations have gradient operators that no inference runtime implements."""


class TrainingLoss(torch.nn.Module):
    """The loss of a model in the form in which it is differentiated.

    Args:
        loss_model: ``ExportModel.loss_model``.
    """

    def __init__(self, loss_model: Any) -> None:
        super().__init__()
        self.loss_model = loss_model

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the scalar to differentiate and, where they differ, the loss as a second scalar."""
        if isinstance(self.loss_model, CompletionLoss):
            return self.loss_model.differentiable(*batch)
        return (self.loss_model(*batch)[0],)


@contextlib.contextmanager
def active_layers(model: Any, layers: Sequence[int], n_layers: int) -> Iterator[Any]:
    """Temporarily reduce the model to the given layers (context manager; yields the kept layers).

    Raises:
        ExportError: the model does not keep its layers in one list.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers and _LAYER_LIST.search(name)
    ]
    if len(found) != 1:
        raise ExportError("the model does not keep its layers in one list", "leave out --levels")
    path, whole = found[0]
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    active = torch.nn.ModuleList([whole[layer] for layer in layers])
    setattr(owner, name, active)
    try:
        yield active
    finally:
        setattr(owner, name, whole)


@contextlib.contextmanager
def requiring_gradients(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Compute gradients for the given parameters while the context lasts."""
    for tensor in tensors:
        tensor.requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(requires_grad=False)


@contextlib.contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Switch a model to attention made of plain operations while the context lasts."""
    before = [(part, part.config._attn_implementation) for part in model.modules() if isinstance(part, PreTrainedModel)]  # noqa: SLF001 transformers has no public name for it
    for part, _ in before:
        part.set_attn_implementation(_DIFFERENTIABLE_ATTENTION)
    try:
        yield
    finally:
        for part, name in before:
            part.set_attn_implementation(name)


def trained_parameters(model: ExportModel, trained: AbstractSet[Address]) -> list[torch.nn.Parameter]:
    """Return the model's parameters whose data lies at these addresses."""
    return [parameter for parameter in model.peft_model.parameters() if address_of(parameter) in trained]


def trace_training(model: ExportModel, level: int, trained: AbstractSet[Address]) -> ExportedProgram:
    """Trace the loss and the gradients of a model's first ``level`` layers.

    Args:
        model: the model; it is restored afterwards.
        level: number of active layers.
        trained: addresses of the trained tensors' data.

    Returns:
        The joint program, whose outputs are the loss and one gradient per trained parameter. lift_training turns its
        weights into inputs, and the runtimes' graphs are made from that.

    Raises:
        ExportError: torch.export cannot trace or differentiate the model.
    """
    batch = traced_batch(model)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in size_bounds(model.task).items()}
    shapes = tuple({axis: dims[size] for axis, size in enumerate(sizes(model.task)[name])} for name in batch)
    loss = TrainingLoss(model.loss_model).eval()
    forget_traces()
    with (
        active_layers(model.peft_model, range(level), model.folder.layers) as layers,
        marked(layers),
        _plain_attention(model.peft_model),
        requiring_gradients(trained_parameters(model, trained)),
        quiet(),
    ):
        try:
            program = torch.export.export(loss, tuple(batch.values()), dynamic_shapes=(shapes,))
            return _export_forward_backward(program)
        except ExportError:
            raise
        except Exception as error:  # torch.export raises exceptions of many types
            raise ExportError(
                f"torch.export cannot differentiate the model with {level} layers: {type(error).__name__}: {error}",
                "leave out --levels",
            ) from error


@dataclass(frozen=True)
class LiftedTraining:
    """A joint program as a plain module, with its weights as inputs.

    Attributes:
        lifted: the module; its outputs are ``loss``, ``gradient_0``, …, then those of hidden and hidden_gradients.
        gradients: the name in the program of each gradient's parameter, by the gradient's output.
        hidden: the name of the output that holds a layer's output, by layer; -1: the first layer's input.
        hidden_gradients: the name of the output that holds the gradient with respect to a layer's output, by layer.
    """

    lifted: Lifted
    gradients: dict[str, str]
    hidden: dict[int, str]
    hidden_gradients: dict[int, str]


def lift_training(joint: ExportedProgram, batch_names: Sequence[str]) -> LiftedTraining:
    """Lift the weights of a joint program.

    Args:
        joint: the result of trace_training; it is changed.
        batch_names: names of a batch's tensors, in the order in which the program takes them.
    """
    _tidy(joint.graph)
    hidden, hidden_gradients = take_marks(joint.graph)
    output = next(node for node in joint.graph.nodes if node.op == "output")
    specs = list(zip(joint.graph_signature.output_specs, output.args[0], strict=True))
    kinds = torch.export.graph_signature.OutputKind
    losses = [node for spec, node in specs if spec.kind in (kinds.LOSS_OUTPUT, kinds.USER_OUTPUT)]
    gradients = [(str(spec.target), node) for spec, node in specs if spec.kind == kinds.GRADIENT_TO_PARAMETER]
    outputs = {"loss": losses[-1]}
    outputs |= {f"gradient_{n}": node for n, (_, node) in enumerate(gradients)}
    outputs |= {f"hidden_{layer + 1}": node for layer, node in hidden.items()}
    outputs |= {f"hidden_gradient_{layer + 1}": node for layer, node in hidden_gradients.items()}
    module, inputs = as_module(joint, list(outputs.values()), batch_names)
    _expand(module)
    values = {name: node.meta["val"] for name, node in outputs.items()}
    return LiftedTraining(
        Lifted(module, inputs, values, program_state(joint), boundaries={}, back_parameters={}),
        {f"gradient_{n}": target for n, (target, _) in enumerate(gradients)},
        {layer: f"hidden_{layer + 1}" for layer in hidden},
        {layer: f"hidden_gradient_{layer + 1}" for layer in hidden_gradients},
    )


def _tidy(graph: fx.Graph) -> None:
    """Remove operations that only autograd needs, and replace those that no runtime implements."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.empty_permuted.default:
            # It is a backward formula's buffer, which is filled before it is read.
            value = node.meta["val"]
            with graph.inserting_before(node):
                made = graph.call_function(aten.full.default, (node.args[0], 0.0), {"dtype": value.dtype})
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _expand(module: fx.GraphModule) -> None:
    """Replace each completion_gradient by the module that holds its scan."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.covey.completion_gradient.default:
            module.add_submodule("completion", CompletionGradient())
            with module.graph.inserting_before(node):
                made = module.graph.call_module("completion", node.args)
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.recompile()
