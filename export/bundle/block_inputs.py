"""What the manifest says about the inputs of a graph that reads quantised weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from export.graphs.block_products import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.manifest import GraphInput, InputRole
    from export.model.blocks import BlockShape


def describe_blocks(
    inputs: Sequence[GraphInput], weights: Mapping[str, BlockShape], role: InputRole
) -> list[GraphInput]:
    """Return a graph's inputs with three tensors in place of each quantised weight.

    Args:
        inputs: the inputs as they are without blocks.
        weights: the shape of each quantised weight, by the input's name.
        role: of the three tensors.
    """
    described = []
    for tensor in inputs:
        if tensor.name not in weights:
            described.append(tensor)
            continue
        described += [
            msgspec.structs.replace(
                tensor,
                name=part.name,
                dtype=part.dtype,
                shape=list(part.shape),
                role=role,
                source=tensor.source + part.suffix,
            )
            for part in parts_of(tensor.name, weights[tensor.name])
        ]
    return described
