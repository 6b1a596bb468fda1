"""Prediction on the device: texts in, labels with probabilities out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.batch import pad
from edge_runtime.engine_onnxruntime import OnnxPredictor
from edge_runtime.text import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle import Bundle
    from edge_runtime.engine import Predictor
    from edge_runtime.perturbation import FloatVector

_BATCH_SIZE = 16

FloatArray = np.ndarray[tuple[Any, ...], np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Prediction:
    """One text with its most likely label and the probability of each."""

    text: str
    label: str
    probabilities: dict[str, float]


def predict(bundle: Bundle, theta: FloatVector, texts: Sequence[str], threads: int = 0) -> list[Prediction]:
    """Classify texts with the adapter ``theta``.

    Raises:
        BundleError: the bundle cannot be run.
    """
    task = bundle.manifest.task
    tokens = TextEncoder(bundle.file(bundle.manifest.tokenizer_file), task).encode(texts)
    logits = all_logits(OnnxPredictor(bundle, threads), theta, tokens, task.pad_token_id, len(task.labels))
    probabilities = np.exp(logits - log_sum_exp(logits)[:, None])
    return [
        Prediction(
            text,
            task.labels[int(np.argmax(row))],
            {label: float(p) for label, p in zip(task.labels, row, strict=True)},
        )
        for text, row in zip(texts, probabilities, strict=True)
    ]


def all_logits(
    predictor: Predictor, theta: FloatVector, tokens: Sequence[Sequence[int]], pad_token_id: int, n_labels: int
) -> FloatVector:
    """Return the logits of every row, in the order given; rows of like length share a batch, so little is padded.

    Returns:
        float32, (rows, n_labels).
    """
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    logits: FloatVector = np.empty((len(tokens), n_labels), dtype=np.float32)
    for start in range(0, len(order), _BATCH_SIZE):
        indices = order[start : start + _BATCH_SIZE]
        batch = pad([tokens[index] for index in indices], [0] * len(indices), pad_token_id)
        logits[indices] = predictor.logits(theta, batch)
    return logits


def log_sum_exp(logits: FloatArray) -> FloatArray:
    """Return log Σ exp over the last axis, without overflow, in the precision of ``logits``."""
    top = logits.max(axis=-1)
    total: FloatArray = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    return total
