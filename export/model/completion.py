"""The task ``causal-lm``: next-token loss at the positions that a batch asks for, a chunk of them at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from edge_runtime.data.batch import IGNORED
from export.model.names import unwrapped


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
        hidden, weight, bias = self._hidden(input_ids, attention_mask)

        def chunk(
            total: torch.Tensor, place: tuple[torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            position, label = place
            logits = nn.functional.linear(hidden.index_select(0, position), weight, bias)
            losses, _ = _token_losses(logits, label)
            return total + losses.sum(), (losses, logits.argmax(dim=1))

        total, (losses, best) = scan(chunk, hidden.new_zeros(()), (positions, labels))
        return total / (labels != IGNORED).sum(), losses, best

    def differentiable(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a scalar with the loss's gradient, and the loss; arguments as forward's.

        A scan that is differentiated keeps every chunk's logits. The output embedding is frozen, so a chunk's gradient
        (softmax less one-hot, times the embedding) is at hand where its logits are: completion_gradient gives that, as
        a constant, and its product with the hidden states has it as its gradient.

        Returns:
            Sum of hidden states times the loss's gradient with respect to them; the loss, detached.
        """
        hidden, weight, bias = self._hidden(input_ids, attention_mask)
        loss, gradients = completion_gradient(hidden.detach(), weight, bias, labels, positions)
        return (hidden.index_select(0, positions.flatten()) * gradients).sum(), loss

    def _hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the last hidden states, (rows × tokens, width), and the output embedding with its bias."""
        model = unwrapped(self.model)
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        embedding = model.get_output_embeddings()
        return hidden.flatten(0, 1), embedding.weight, embedding.bias


class CompletionGradient(nn.Module):
    """Loss of completions and its gradient, chunk by chunk, in a scan that becomes one ONNX ``Scan``."""

    def forward(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what completion_gradient stands for."""

        def chunk(total: torch.Tensor, place: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            position, label = place
            losses, share = _token_losses(nn.functional.linear(hidden.index_select(0, position), weight, bias), label)
            gradient = share @ weight - weight.index_select(0, label.clamp(min=0))
            return total + losses.sum(), torch.where((label == IGNORED).unsqueeze(1), 0.0, gradient)

        total, gradients = scan(chunk, hidden.new_zeros(()), (positions, labels))
        count = (labels != IGNORED).sum()
        return total / count, gradients.flatten(0, 1) / count


@torch.library.custom_op("covey::completion_gradient", mutates_args=())
def completion_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss over the labelled positions, and its gradient with respect to the hidden state at each.

    An operator of its own because a program with a scan cannot be differentiated, not even beside the scan. It is
    replaced by CompletionGradient before a runtime sees it.

    Args:
        hidden: (rows × tokens, width).
        weight: output embedding, (vocabulary, width).
        bias: of the output embedding, (vocabulary,).
        labels: (chunks, chunk).
        positions: (chunks, chunk).

    Returns:
        A scalar, and (chunks × chunk, width).
    """
    return CompletionGradient()(hidden, weight, bias, labels, positions)


@completion_gradient.register_fake
def _shapes(
    hidden: torch.Tensor,
    weight: torch.Tensor,  # noqa: ARG001 the operator's signature
    bias: torch.Tensor | None,  # noqa: ARG001 as above
    labels: torch.Tensor,
    positions: torch.Tensor,  # noqa: ARG001 as above
) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden.new_empty(()), hidden.new_empty(labels.shape[0] * labels.shape[1], hidden.shape[1])


def _token_losses(logits: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each position's cross-entropy, 0 where its label is IGNORED, and its softmax: (chunk, vocabulary)."""
    # Not logsumexp: over 49,152 words ONNX Runtime's ReduceLogSumExp errs nine times as much as PyTorch's.
    below = logits - logits.amax(dim=1, keepdim=True)
    powers = below.exp()
    total = powers.sum(dim=1)
    wanted = below.gather(1, label.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(label == IGNORED, 0.0, total.log() - wanted), powers / total.unsqueeze(1)
