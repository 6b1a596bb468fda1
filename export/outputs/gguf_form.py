"""What GGUF's form of an architecture has: its name, and where it puts the rows of a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf

if TYPE_CHECKING:
    from edge_runtime.values import Tensor

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
"""Hugging Face's model types that can be written, and their name in GGUF."""


def in_rows_of_gguf(rows: Tensor, name: str, config: Any) -> Tensor:
    """Return a weight or a bias with its rows in GGUF's order.

    A Llama's query and key have them in pairs for the rotation: the two halves of a rotated pair stand side by side.

    Args:
        rows: the weight, (outputs, …).
        name: of its module, such as ``model.layers.0.self_attn.q_proj``.
        config: the model's Hugging Face configuration.
    """
    if config.model_type != "llama" or not name.endswith(("q_proj", "k_proj")):
        return rows
    heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
