"""A linear probe: logistic regression on a frozen model's features, the baseline that fine-tuning has to beat.

It sees all training rows in one place, which a fleet never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edge_runtime.data.examples import read_rows
from export.model.head_init import features_of
from export.model.tasks import PooledClassifier, default_pooling
from export.source.loading import load_model
from export.source.tokenizer import fit_to_vocabulary, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from export.source.folder import ModelFolder

_DECAYS = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_VALIDATION_SHARE = 0.2
_ITERATIONS = 200


@dataclass(frozen=True)
class ProbeResult:
    """Held-out loss (nats per row) and accuracy (0 to 1) of the probe, and its number of training rows."""

    loss: float
    accuracy: float
    train_rows: int


def linear_probe(folder: ModelFolder, labels: list[str], train: Path, test: Path, max_tokens: int) -> ProbeResult:
    """Fit logistic regression (LBFGS) to the standardised pooled features of ``train``; evaluate it on ``test``.

    The last fifth of the training rows chooses the weight decay.

    Args:
        folder: the model.
        labels: names of the labels.
        train: labelled training rows (.jsonl or .csv).
        test: held-out rows.
        max_tokens: longer rows are cut to this many tokens.

    Raises:
        DataError: a row is invalid.
        ExportError: the model cannot be loaded.
    """
    train_rows, test_rows = read_rows(train, labels), read_rows(test, labels)
    tokenizer = load_tokenizer(folder)
    fit_to_vocabulary(folder, tokenizer, [tokenizer.pad_token_id])
    model = PooledClassifier(load_model(folder, "base"), len(labels), default_pooling(folder), 1.0).eval()
    pad = tokenizer.pad_token_id or 0
    x = features_of(model, tokenizer, [row.text for row in train_rows], max_tokens, pad)
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x = (x - mean) / scale
    y = torch.tensor([row.label for row in train_rows])
    decay = _best_decay(x, y, len(labels))
    head = _fit(x, y, len(labels), decay)
    z = (features_of(model, tokenizer, [row.text for row in test_rows], max_tokens, pad) - mean) / scale
    target = torch.tensor([row.label for row in test_rows])
    with torch.no_grad():
        logits = head(z)
        loss = float(torch.nn.functional.cross_entropy(logits, target))
    return ProbeResult(loss, float((logits.argmax(dim=1) == target).float().mean()), len(train_rows))


def _best_decay(x: torch.Tensor, y: torch.Tensor, n_labels: int) -> float:
    """Return the weight decay whose head, fitted to the first rows, has the lowest loss on the last ones."""
    cut = int(len(y) * (1 - _VALIDATION_SHARE))

    def validation_loss(decay: float) -> float:
        head = _fit(x[:cut], y[:cut], n_labels, decay)
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(head(x[cut:]), y[cut:]))

    return min(_DECAYS, key=validation_loss) if 0 < cut < len(y) else _DECAYS[-1]


def _fit(x: torch.Tensor, y: torch.Tensor, n_labels: int, decay: float) -> torch.nn.Linear:
    head = torch.nn.Linear(x.shape[1], n_labels)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(x), y) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head
