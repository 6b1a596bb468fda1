"""Initialises a head from labelled examples: class means of the features, and a temperature fitted to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from export.model.tasks import PooledClassifier

_TEMPERATURES = torch.logspace(-2, 3, 101)
_BATCH = 32


def fit_head(
    model: PooledClassifier,
    tokenizer: Any,
    texts: list[str],
    labels: list[int],
    max_tokens: int,
    pad_token_id: int,
) -> None:
    """Set the head of ``model`` from class means of its features.

    A label's weight is its mean feature minus the mean of all labels' means, so that a point in the middle is neutral.
    One factor common to all labels is chosen by the cross-entropy of the examples, each scored by means that leave it
    out. With few examples, means fit their own examples far better than others, and a head fitted with them would start
    overconfident.

    Args:
        model: the classifier, changed in place; the factor takes its logit scale into account.
        tokenizer: a fast Hugging Face tokenizer.
        texts: the examples.
        labels: index of each example's label; every label occurs.
        max_tokens: longer texts are cut to this many tokens.
        pad_token_id: token that fills up shorter rows.
    """
    features = features_of(model, tokenizer, texts, max_tokens, pad_token_id)
    target = torch.tensor(labels)
    n_labels = model.classifier.out_features
    means = torch.stack([features[target == label].mean(dim=0) for label in range(n_labels)])
    scores, known = _left_out_scores(features, target, means)
    losses = torch.stack([torch.nn.functional.cross_entropy(scores[known] * t, target[known]) for t in _TEMPERATURES])
    factor = _TEMPERATURES[int(losses.argmin())] / model.logit_scale
    weight, bias = _head_of(means)
    with torch.no_grad():
        model.classifier.weight.copy_(weight * factor)
        model.classifier.bias.copy_(bias * factor)


def _head_of(means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight, (labels, width), and bias, (labels,), from the labels' mean features, (labels, width)."""
    middle = means.mean(dim=0)
    weight = means - middle
    return weight, -(weight @ middle) - 0.5 * (weight * weight).sum(dim=1)


def _left_out_scores(
    features: torch.Tensor, target: torch.Tensor, means: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each example's scores by means that leave it out, (examples, labels), and which examples have them.

    The only example of a label has no such scores. Where every example is its label's only one, all are scored by means
    that include them.
    """
    counts = torch.bincount(target, minlength=len(means))
    known = counts[target] > 1
    if not known.any():
        weight, bias = _head_of(means)
        return features @ weight.T + bias, torch.ones_like(known)
    scores = torch.zeros(len(features), len(means))
    for row in known.nonzero().flatten().tolist():
        label, others = target[row], means.clone()
        others[label] += (means[label] - features[row]) / (counts[label] - 1)
        weight, bias = _head_of(others)
        scores[row] = weight @ features[row] + bias
    return scores, known


def features_of(
    model: PooledClassifier,
    tokenizer: Any,
    texts: list[str],
    max_tokens: int,
    pad_token_id: int,
) -> torch.Tensor:
    """Return the pooled features of texts: float32, (texts, width)."""
    rows = [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]
    # Rows of similar length share a batch, so that little is padded.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    features = torch.empty(len(rows), model.classifier.in_features)
    for start in range(0, len(order), _BATCH):
        chunk = order[start : start + _BATCH]
        longest = max(len(rows[index]) for index in chunk)
        input_ids = torch.tensor([rows[index] + [pad_token_id] * (longest - len(rows[index])) for index in chunk])
        attention_mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in chunk])
        with torch.no_grad():
            features[chunk] = model.features(input_ids, attention_mask)
    return features
