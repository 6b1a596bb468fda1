"""Writes a small .pte for .ci/aarch64: attention and a linear layer with weights as inputs, as in a bundle's graphs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from export.graphs.executorch_pieces import lower


class Layer(torch.nn.Module):
    """One attention head, a normalisation and a linear layer."""

    def forward(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        attended = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        normalised = torch.nn.functional.layer_norm(attended + hidden, hidden.shape[-1:])
        return torch.nn.functional.gelu(torch.nn.functional.linear(normalised, weight, bias))


if __name__ == "__main__":
    inputs = torch.zeros(2, 4, 6, 16), torch.zeros(8, 16), torch.zeros(8)
    program = torch.export.export(Layer(), inputs, dynamic_shapes=({0: torch.export.Dim("batch", max=4)}, None, None))
    Path(sys.argv[1]).write_bytes(lower(program).data)
