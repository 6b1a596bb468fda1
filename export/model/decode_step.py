"""One step of continuing a text: new tokens and the cache in, the next token's logits and the longer cache out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from export.model.names import unwrapped


class DecodeStep(nn.Module):
    """A causal language model that reads the next tokens of one text.

    The cache has no configuration, so that layers with a sliding window keep all tokens too; the mask leaves out those
    beyond the window.

    Args:
        model: PEFT's wrapped model, or the bare model in full mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Read tokens.

        Args:
            input_ids: (1, tokens).
            past: each layer's keys, then its values, of the tokens before: (1, heads, past, size).

        Returns:
            The logits after the last token, (1, vocabulary); then ``past`` with the new tokens', in the same order.
        """
        model, cache = unwrapped(self.model), DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        hidden = model.base_model(input_ids=input_ids, past_key_values=cache, use_cache=True)[0][:, -1]
        embedding = model.get_output_embeddings()
        logits = nn.functional.linear(hidden, embedding.weight, embedding.bias)
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def example_past(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the cache of a model that has read ``input_ids``, (1, tokens), in the order of DecodeStep."""
    cache = DynamicCache()
    with torch.no_grad():
        unwrapped(model).base_model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
