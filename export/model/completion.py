"""The task ``causal-lm``: the next-token loss at the positions that a batch lists, computed chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from edge_runtime.data.batch import IGNORED
from export.model.names import unwrapped


class CompletionLoss(nn.Module):
    """A causal language model with the loss of its completions.

    A scan multiplies the hidden states of one chunk of positions after another with the output embedding. It becomes
    one ONNX ``Scan``, so that only (chunk, vocabulary) logits exist at a time, whatever the size of a batch.

    Args:
        model: PEFT's wrapped model, or the bare model in full mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the mean loss over all labelled positions.

        Args:
            input_ids: (rows, tokens).
            attention_mask: (rows, tokens).
            labels: (chunks, chunk), the token that follows each position, or IGNORED.
            positions: (chunks, chunk), each one row × tokens + token.

        Returns:
            The mean loss, a scalar; each position's loss, 0 where its label is IGNORED; and each position's most likely
            next token. The latter two are (chunks, chunk).
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
        """Compute a scalar that has the loss's gradient, and the loss; the arguments are forward's.

        A differentiated scan would keep the logits of every chunk. But the output embedding is frozen, so a chunk's
        gradient (softmax minus one-hot, times the embedding) is known as soon as its logits are. completion_gradient
        returns it as a constant; the product of that constant and the hidden states has it as its gradient.

        Returns:
            The sum of the hidden states times the loss's gradient with respect to them; the loss, detached.
        """
        hidden, weight, bias = self._hidden(input_ids, attention_mask)
        loss, gradients = completion_gradient(hidden.detach(), weight, bias, labels, positions)
        return (hidden.index_select(0, positions.flatten()) * gradients).sum(), loss

    def _hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the last hidden states, (rows × tokens, width), and the output embedding's weight and bias."""
        model = unwrapped(self.model)
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        embedding = model.get_output_embeddings()
        return hidden.flatten(0, 1), embedding.weight, embedding.bias


def gradient_by_chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss over the labelled positions, and its gradient with respect to the hidden state at each.

    Args:
        hidden: (rows × tokens, width).
        weight: output embedding, (vocabulary, width).
        bias: of the output embedding, (vocabulary,).
        labels: (chunks, chunk).
        positions: (chunks, chunk).

    Returns:
        A scalar, and (chunks × chunk, width).
    """

    def chunk(total: torch.Tensor, place: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        position, label = place
        losses, share = _token_losses(nn.functional.linear(hidden.index_select(0, position), weight, bias), label)
        gradient = share @ weight - weight.index_select(0, label.clamp(min=0))
        return total + losses.sum(), torch.where((label == IGNORED).unsqueeze(1), 0.0, gradient)

    total, gradients = scan(chunk, hidden.new_zeros(()), (positions, labels))
    count = (labels != IGNORED).sum()
    return total / count, gradients.flatten(0, 1) / count


class CompletionGradient(nn.Module):
    """``gradient_by_chunks`` as a module, whose scan becomes one ONNX ``Scan``."""

    def forward(self, *operands: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what gradient_by_chunks returns for the same arguments."""
        return gradient_by_chunks(*operands)


completion_gradient = torch.library.custom_op("covey::completion_gradient", gradient_by_chunks, mutates_args=())
"""``gradient_by_chunks`` as one operator, because torch.export cannot differentiate any part of a program with a scan.

CompletionGradient replaces the operator before a runtime sees the program.
"""


@completion_gradient.register_fake
def _shapes(
    hidden: torch.Tensor, _weight: torch.Tensor, _bias: torch.Tensor | None, labels: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden.new_empty(()), hidden.new_empty(labels.shape[0] * labels.shape[1], hidden.shape[1])


def _token_losses(logits: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each position's cross-entropy, 0 where its label is IGNORED, and its softmax: (chunk, vocabulary)."""
    # Not logsumexp: over 49,152 words, ONNX Runtime's ReduceLogSumExp has nine times the error of PyTorch's.
    below = logits - logits.amax(dim=1, keepdim=True)
    powers = below.exp()
    total = powers.sum(dim=1)
    wanted = below.gather(1, label.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(label == IGNORED, 0.0, total.log() - wanted), powers / total.unsqueeze(1)
