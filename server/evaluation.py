"""Held-out loss and accuracy of an adapter, on the server's own engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.data.rows import EncodedCompletions
from edge_runtime.engines.predict import all_logits, log_sum_exp, score_completions

if TYPE_CHECKING:
    from edge_runtime.data.rows import EncodedRows
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.perturbation.perturb import FloatVector


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and share of right answers over the held-out rows.

    For causal-lm both are over all completion tokens: exp(loss) is the perplexity, and a token is right where it is the
    likeliest one after the true tokens before it.
    """

    loss: float
    accuracy: float


def evaluate(
    predictor: Predictor, theta: FloatVector, rows: EncodedRows | EncodedCompletions, n_labels: int
) -> Evaluation:
    """Evaluate ``theta`` on all rows; ``n_labels`` is not used for completions."""
    if isinstance(rows, EncodedCompletions):
        scores = score_completions(predictor, theta, rows)
        tokens = float(scores.tokens.sum())
        return Evaluation(float(scores.loss_sums.sum()) / tokens, float(scores.right.sum()) / tokens)
    logits = all_logits(predictor, theta, rows.tokens, rows.pad_token_id, n_labels).astype(np.float64)
    labels = np.asarray(rows.labels)
    losses = log_sum_exp(logits) - logits[np.arange(len(labels)), labels]
    return Evaluation(loss=float(losses.mean()), accuracy=float((logits.argmax(axis=1) == labels).mean()))
