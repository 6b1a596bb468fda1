"""The task ``causal-lm``: next-token loss at the positions that a batch asks for, a chunk of them at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from edge_runtime.batch import IGNORED
from export.lora import unwrapped


class CompletionLoss(nn.Module):
    """A causal language model with the loss of its completions.

    The output embedding meets the hidden states of one chunk of positions after the other, in a scan, which becomes one
    ONNX ``Scan``: whatever the sizes of a batch, only (chunk, vocabulary) logits exist at a time.

    Args:
        model: what PEFT wrapped.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the loss over all labelled positions.

        Args:
            input_ids: (rows, tokens).
            attention_mask: (rows, tokens).
            labels: (chunks, chunk), the token that follows each position, or IGNORED.
            positions: (chunks, chunk), row × tokens + place.

        Returns:
            The mean loss over the labelled positions; each position's loss, 0 where its label is IGNORED, and its
            likeliest next token, both (chunks, chunk).
        """
        model = unwrapped(self.model)
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0].flatten(0, 1)
        weight, bias = model.get_output_embeddings().weight, model.get_output_embeddings().bias

        def chunk(
            total: torch.Tensor, place: tuple[torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            position, label = place
            logits = nn.functional.linear(hidden.index_select(0, position), weight, bias)
            # Not logsumexp: over 49,152 words ONNX Runtime's ReduceLogSumExp errs nine times as much as PyTorch's.
            below = logits - logits.amax(dim=1, keepdim=True)
            wanted = below.gather(1, label.clamp(min=0).unsqueeze(1)).squeeze(1)
            losses = torch.where(label == IGNORED, 0.0, below.exp().sum(dim=1).log() - wanted)
            return total + losses.sum(), (losses, logits.argmax(dim=1))

        total, (losses, best) = scan(chunk, hidden.new_zeros(()), (positions, labels))
        return total / (labels != IGNORED).sum(), losses, best
