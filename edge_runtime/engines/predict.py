"""Prediction on the device: from texts to labels with probabilities; scores of completions.

Continuing prompts is in continuation.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import pad
from edge_runtime.data.rows import EncodedCompletions
from edge_runtime.data.tokens import TextEncoder
from edge_runtime.engines.choose import ONNX_RUNTIME, Engines
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.rows import EncodedRows
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.values import FloatVector, Logits

BATCH_SIZE = 16
"""Rows that run at once."""

FloatArray = np.ndarray[tuple[Any, ...], np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Prediction:
    """One text with its most likely label and the probability of each."""

    text: str
    label: str
    probabilities: dict[str, float]


def predict(
    bundle: Bundle, theta: FloatVector, texts: Sequence[str], engines: Engines = ONNX_RUNTIME
) -> list[Prediction]:
    """Classify texts with the adapter ``theta``.

    Raises:
        BundleError: the bundle cannot be run.
        ConfigError: its task is causal-lm.
    """
    task = bundle.manifest.task
    if task.kind == CAUSAL_LM:
        raise ConfigError("the bundle's task is causal-lm: it has no labels", "use continuation.Continuer")
    encoder = TextEncoder(bundle.file(bundle.manifest.tokenizer_file), task, bundle.manifest.vocab_size)
    return classify(task, encoder, engines.make_predictor(bundle), theta, texts)


def classify(
    task: Task, encoder: TextEncoder, predictor: Predictor, theta: FloatVector, texts: Sequence[str]
) -> list[Prediction]:
    """Classify texts with what is loaded already; see predict."""
    logits = all_logits(predictor, theta, encoder.encode(texts), task.pad_token_id, len(task.labels))
    probabilities = np.exp(logits - log_sum_exp(logits)[:, None])
    return [
        Prediction(
            text,
            task.labels[int(np.argmax(row))],
            {label: float(p) for label, p in zip(task.labels, row, strict=True)},
        )
        for text, row in zip(texts, probabilities, strict=True)
    ]


@dataclass(frozen=True)
class CompletionScores:
    """For each row: sum of its completion tokens' losses (nats), number of these tokens, and how many are right.

    All of shape (rows,), float64. A token is right where it is the likeliest one after all the tokens before it.
    """

    loss_sums: FloatArray
    tokens: FloatArray
    right: FloatArray


def by_length(tokens: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices of rows in the order in which they run, BATCH_SIZE at a time: the shortest first."""
    return sorted(range(len(tokens)), key=lambda index: len(tokens[index]))


def score_completions(predictor: Predictor, theta: FloatVector, rows: EncodedCompletions) -> CompletionScores:
    """Score every row's completion, in the order given; rows of similar length share a batch."""
    order = by_length(rows.tokens)
    sums = np.empty((3, len(rows)), dtype=np.float64)
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        batch = rows.batch(indices)
        losses, best = predictor.token_scores(theta, batch)
        for row, values in enumerate((losses, np.ones_like(losses), best == batch.labels)):
            sums[row, indices] = batch.by_row(values)
    return CompletionScores(*sums)


def right_answers(
    predictor: Predictor, theta: FloatVector, rows: EncodedRows | EncodedCompletions, n_labels: int
) -> tuple[int, int]:
    """Return how many answers are right, and how many there are: labels, or tokens of completions.

    Args:
        predictor: the whole model.
        theta: the adapter, float32, (parameters,).
        rows: the rows.
        n_labels: number of labels; of completions it says nothing.
    """
    if isinstance(rows, EncodedCompletions):
        scores = score_completions(predictor, theta, rows)
        return int(scores.right.sum()), int(scores.tokens.sum())
    best = all_logits(predictor, theta, rows.tokens, rows.pad_token_id, n_labels).argmax(axis=1)
    return int((best == np.asarray(rows.labels)).sum()), len(rows)


def all_logits(
    predictor: Predictor, theta: FloatVector, tokens: Sequence[Sequence[int]], pad_token_id: int, n_labels: int
) -> Logits:
    """Return the logits of every row, in the order given; rows of similar length share a batch, to save padding.

    Returns:
        float32, (rows, n_labels).
    """
    order = by_length(tokens)
    logits: Logits = np.empty((len(tokens), n_labels), dtype=np.float32)
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        batch = pad([tokens[index] for index in indices], [0] * len(indices), pad_token_id)
        logits[indices] = predictor.logits(theta, batch)
    return logits


def log_sum_exp(logits: FloatArray) -> FloatArray:
    """Return log Σ exp over the last axis, without overflow, in the precision of ``logits``."""
    top = logits.max(axis=-1)
    total: FloatArray = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    return total
