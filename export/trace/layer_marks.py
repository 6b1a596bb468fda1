"""Marks the boundaries of a model's layers so that they survive tracing and differentiation.

The joint program of loss and gradients does not know which modules its operations came from. Therefore each layer's
output passes through an operator that copies it. The operator shows the boundary in the forward pass, and its gradient
operator shows it in the backward pass.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx


@torch.library.custom_op("covey::hidden", mutates_args=())
def _hidden(value: torch.Tensor, index: int) -> torch.Tensor:  # noqa: ARG001 take_marks reads the index
    """Return a copy: the output of layer ``index``; -1 for the input of the first layer."""
    return value.clone()


@torch.library.custom_op("covey::hidden_gradient", mutates_args=())
def _hidden_gradient(value: torch.Tensor, index: int) -> torch.Tensor:  # noqa: ARG001 take_marks reads the index
    """Return a copy: the gradient with respect to the output of layer ``index``."""
    return value.clone()


@_hidden.register_fake
@_hidden_gradient.register_fake
def _same(value: torch.Tensor, _index: int) -> torch.Tensor:
    return torch.empty_like(value)


def _remember(ctx: Any, inputs: tuple[torch.Tensor, int], output: torch.Tensor) -> None:  # noqa: ARG001 torch passes it by name
    ctx.index = inputs[1]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _hidden_gradient(gradient, ctx.index), None


_hidden.register_autograd(_backward, setup_context=_remember)


@contextlib.contextmanager
def marked(layers: Sequence[Any]) -> Iterator[None]:
    """Mark the first layer's input and every layer's output while the context lasts."""

    def mark_input(_layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_hidden(given[0], -1), *given[1:])

    def mark_output(index: int) -> Any:
        def mark(_layer: Any, _given: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (_hidden(output[0], index), *output[1:])
            return _hidden(output, index)

        return mark

    hooks = [layers[0].register_forward_pre_hook(mark_input)]
    hooks += [layer.register_forward_hook(mark_output(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def take_marks(graph: fx.Graph) -> tuple[dict[int, fx.Node], dict[int, fx.Node]]:
    """Remove the marks from a graph.

    Returns:
        The node that computes each layer's output, by layer (-1: the first layer's input); and the node that computes
        the gradient with respect to each output, by layer.
    """
    hidden: dict[int, fx.Node] = {}
    gradients: dict[int, fx.Node] = {}
    found = {torch.ops.covey.hidden.default: hidden, torch.ops.covey.hidden_gradient.default: gradients}
    for node in list(graph.nodes):
        if node.target in found:
            value, index = node.args
            found[node.target][index] = value
            node.replace_all_uses_with(value)
            graph.erase_node(node)
    return hidden, gradients
