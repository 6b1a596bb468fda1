"""Describes programs so that equal ones are recognised and lowered once."""

from __future__ import annotations

import hashlib
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from collections.abc import Iterator


def describe(program: Any) -> str:
    """Describe a program by operators, arguments, element types, sizes, bounds and constants, without names of values.

    Programs with equal descriptions are lowered to the same bytes.
    """
    bounds = sorted(f"{size}:{bound}" for size, bound in program.range_constraints.items())
    held = {**dict(program.state_dict), **dict(program.constants)}
    return "\n".join([*described_nodes(program.graph_module, held), *bounds])


def described_nodes(module: fx.GraphModule, held: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each node of a graph, and for each constant in the graph or in ``held``."""
    numbers: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        numbers[node] = len(numbers)
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        values = node.meta.get("val")
        values = values if isinstance(values, (tuple, list)) else [values]
        described = [f"{v.dtype}{list(v.shape)}" if isinstance(v, torch.Tensor) else str(v) for v in values]
        target = node.target if node.op in ("call_function", "call_module") else ""
        target = (
            target.__qualname__ if isinstance(target, types.FunctionType) else target
        )  # its repr would hold an address
        yield f"{node.op} {target} {arguments} {described}"
        if node.op == "get_attr":
            value = getattr(module, str(node.target), None)
            if isinstance(value, fx.GraphModule):
                yield from described_nodes(value, {})
            elif isinstance(value, torch.Tensor):
                yield _digest(value)
    yield from (_digest(value) for _, value in sorted(held.items()) if isinstance(value, torch.Tensor))


def _digest(tensor: torch.Tensor) -> str:
    # A tensor without dimensions has no view as bytes.
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype}{list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"
