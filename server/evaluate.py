"""Held-out loss and accuracy of an adapter, on the server's own engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.predict import all_logits, log_sum_exp

if TYPE_CHECKING:
    from edge_runtime.engine import Predictor
    from edge_runtime.perturbation import FloatVector
    from edge_runtime.trainer import EncodedRows


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and share of right answers over the held-out rows."""

    loss: float
    accuracy: float


def evaluate(predictor: Predictor, theta: FloatVector, rows: EncodedRows, n_labels: int) -> Evaluation:
    """Evaluate ``theta`` on all rows."""
    logits = all_logits(predictor, theta, rows.tokens, rows.pad_token_id, n_labels).astype(np.float64)
    labels = np.asarray(rows.labels)
    losses = log_sum_exp(logits) - logits[np.arange(len(labels)), labels]
    return Evaluation(loss=float(losses.mean()), accuracy=float((logits.argmax(axis=1) == labels).mean()))
