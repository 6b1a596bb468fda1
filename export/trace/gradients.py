"""Training graphs: the loss of some of a model's layers and its gradients, as a program for inference runtimes.

The model runs with k of its layers, is traced, and the traced program is differentiated
(``torch.export.experimental._export_forward_backward``): a graph of plain ATen operations, dynamic sizes kept. With its
weights as inputs any k layers can be bound, so the first k of them are as good as any for tracing.
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
from export.model.completion import CompletionGradient, CompletionLoss
from export.quiet import quiet
from export.trace.batches import example_batch, size_bounds, sizes
from export.trace.layer_marks import marked, take_marks
from export.trace.lift import Lifted, as_module
from export.trace.loss import forget_traces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx
    from torch.export import ExportedProgram

    from export.model.build import ExportModel
    from export.source.folder import ModelFolder

_LAYER_LIST = re.compile(r"(^|\.)layers?$")
_DIFFERENTIABLE_ATTENTION = "eager"
"""The others are operators of their own, whose gradients are operators that no inference runtime has."""


class TrainingLoss(torch.nn.Module):
    """The loss of a model, and what stands for it where it is differentiated.

    Args:
        loss_model: of ExportModel.
    """

    def __init__(self, loss_model: Any) -> None:
        super().__init__()
        self.loss_model = loss_model

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what is differentiated and, where that is another number, the loss: both scalars."""
        if isinstance(self.loss_model, CompletionLoss):
            return self.loss_model.differentiable(*batch)
        return (self.loss_model(*batch)[0],)


@contextlib.contextmanager
def active_layers(model: Any, layers: Sequence[int], n_layers: int) -> Iterator[Any]:
    """Have only some layers in a model meanwhile; yields them.

    Raises:
        ExportError: the model's layers are not in one list.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers and _LAYER_LIST.search(name)
    ]
    if len(found) != 1:
        raise ExportError("the model's layers are not in one list", "export without --levels")
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
    """Have gradients computed for some parameters meanwhile."""
    for tensor in tensors:
        tensor.requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(requires_grad=False)


@contextlib.contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    before = [(part, part.config._attn_implementation) for part in model.modules() if isinstance(part, PreTrainedModel)]  # noqa: SLF001 transformers' own name
    for part, _ in before:
        part.set_attn_implementation(_DIFFERENTIABLE_ATTENTION)
    try:
        yield
    finally:
        for part, name in before:
            part.set_attn_implementation(name)


def trained_parameters(model: ExportModel, trained: set[int]) -> list[torch.nn.Parameter]:
    """Return the parameters whose data lies at these addresses."""
    return [parameter for parameter in model.peft_model.parameters() if parameter.data_ptr() in trained]


def trace_training(model: ExportModel, folder: ModelFolder, level: int, trained: set[int]) -> ExportedProgram:
    """Trace loss and gradients of a model with so many active layers.

    Args:
        model: the model; as it was afterwards.
        folder: where it came from.
        level: number of active layers.
        trained: addresses of the data of what is trained.

    Returns:
        The joint program: its outputs are the loss and a gradient for each trained parameter; see lift_training for
        the same with weights as inputs, which is what runtimes are lowered from.

    Raises:
        ExportError: torch.export cannot trace or differentiate the model.
    """
    batch = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in size_bounds(model.task).items()}
    shapes = tuple({axis: dims[size] for axis, size in enumerate(sizes(model.task)[name])} for name in batch)
    loss = TrainingLoss(model.loss_model).eval()
    forget_traces()
    with (
        active_layers(model.peft_model, range(level), folder.layers) as layers,
        marked(layers),
        _plain_attention(model.peft_model),
        requiring_gradients(trained_parameters(model, trained)),
        quiet(),
    ):
        try:
            program = torch.export.export(loss, tuple(batch.values()), dynamic_shapes=(shapes,))
            return _export_forward_backward(program)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ExportError(
                f"the model with {level} layers cannot be differentiated: {error}", "export without --levels"
            ) from error


@dataclass(frozen=True)
class LiftedTraining:
    """A joint program as a plain module with weights as inputs.

    Attributes:
        lifted: its outputs are ``loss``, ``gradient_0``, …, then ``hidden`` and ``hidden_gradients``.
        gradients: by output, the name in the program of the parameter that a gradient belongs to.
        hidden: by layer, the output with the layer's own output; -1: with what goes into the first layer.
        hidden_gradients: by layer, the output with the gradient with respect to the layer's output.
    """

    lifted: Lifted
    gradients: dict[str, str]
    hidden: dict[int, str]
    hidden_gradients: dict[int, str]


def lift_training(joint: ExportedProgram, batch_names: Sequence[str]) -> LiftedTraining:
    """Lift the weights of a joint program.

    Args:
        joint: of trace_training; changed.
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
        Lifted(module, inputs, values, {}, {}),
        {f"gradient_{n}": target for n, (target, _) in enumerate(gradients)},
        {layer: f"hidden_{layer + 1}" for layer in hidden},
        {layer: f"hidden_gradient_{layer + 1}" for layer in hidden_gradients},
    )


def _tidy(graph: fx.Graph) -> None:
    """Take out what only autograd needs, and what no runtime has."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.empty_permuted.default:
            # A backward formula's buffer: it is filled before it is read.
            value = node.meta["val"]
            with graph.inserting_before(node):
                made = graph.call_function(aten.full.default, (node.args[0], 0.0), {"dtype": value.dtype})
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _expand(module: fx.GraphModule) -> None:
    """Put the module with the scan where completion_gradient stands."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.covey.completion_gradient.default:
            module.add_submodule("completion", CompletionGradient())
            with module.graph.inserting_before(node):
                made = module.graph.call_module("completion", node.args)
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.recompile()
