"""Held-out loss and accuracy of an adapter, on the server's own engine."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_runtime.data.rows import EncodedCompletions
from edge_runtime.engines.predict import all_logits, log_sum_exp, score_completions
from edge_runtime.values import FloatVector

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.data.rows import EncodedRows
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.engines.predict import FloatArray
    from edge_runtime.values import FloatVector

Result = tuple["int | None", "Evaluation"]
"""The index that an evaluation was started with (a round's, None: the first adapter), and what it gave."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats) and share of right answers over the held-out rows.

    For causal-lm both are over all completion tokens: exp(loss) is the perplexity, and a token is right where it is
    the most probable one after the true tokens before it.
    """

    loss: float
    accuracy: float


def evaluate(
    predictor: Predictor, theta: FloatVector, rows: EncodedRows | EncodedCompletions, n_labels: int
) -> Evaluation:
    """Evaluate ``theta``, float32, (parameters,), on all rows; completions do not use ``n_labels``."""
    return judge(rows, answers(predictor, theta, rows, n_labels))


def answers(
    predictor: Predictor, theta: FloatVector, rows: EncodedRows | EncodedCompletions, n_labels: int
) -> FloatArray:
    """Return what the model says of every row, in the order given: all that an evaluation needs of the model.

    Returns:
        float32, (rows, n_labels), the logits; of completions float64, (rows, 3): sum of the losses in nats, number of
        tokens, and how many of them are right.
    """
    if isinstance(rows, EncodedCompletions):
        scores = score_completions(predictor, theta, rows)
        return np.stack([scores.loss_sums, scores.tokens, scores.right], axis=1)
    return all_logits(predictor, theta, rows.tokens, rows.pad_token_id, n_labels)


def judge(rows: EncodedRows | EncodedCompletions, answered: FloatArray) -> Evaluation:
    """Return the evaluation of rows from what the model says of them; see answers."""
    if isinstance(rows, EncodedCompletions):
        loss, tokens, right = (float(np.ascontiguousarray(column).sum()) for column in answered.T)
        return Evaluation(loss / tokens, right / tokens)
    logits = answered.astype(np.float64)
    labels = np.asarray(rows.labels)
    losses = log_sum_exp(logits) - logits[np.arange(len(labels)), labels]
    return Evaluation(loss=float(losses.mean()), accuracy=float((logits.argmax(axis=1) == labels).mean()))


def no_evaluation(_theta: FloatVector) -> Evaluation:
    """Refuse to evaluate: a server that has no job has no held-out rows."""
    raise RuntimeError("there is no job to evaluate for")


class Evaluator(Protocol):
    """Evaluates adapters, one after the other."""

    def start(self, index: int | None, theta: FloatVector) -> None:
        """Start to evaluate an adapter; the last evaluation must have been collected."""

    def collect(self) -> Result | None:
        """Return a finished evaluation; None: there is none (yet)."""

    def close(self) -> None:
        """Wait for a running evaluation, and release the thread."""


class InlineEvaluator:
    """Evaluates adapters at once in the caller's thread: simulations do not depend on the machine's speed.

    Args:
        evaluate: evaluates an adapter on the held-out rows.
    """

    def __init__(self, evaluate: Callable[[FloatVector], Evaluation]) -> None:
        self._evaluate = evaluate
        self._done: Result | None = None

    def start(self, index: int | None, theta: FloatVector) -> None:
        """See Evaluator."""
        if self._done is not None:
            raise RuntimeError("collect the last evaluation first")
        self._done = (index, self._evaluate(theta))

    def collect(self) -> Result | None:
        """See Evaluator."""
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        """See Evaluator."""


class BackgroundEvaluator:
    """Evaluates adapters in a thread of its own, while the coordinator goes on with the next round.

    Args:
        evaluate: evaluates an adapter on the held-out rows.
    """

    def __init__(self, evaluate: Callable[[FloatVector], Evaluation]) -> None:
        self._evaluate = evaluate
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluate")
        self._running: tuple[int | None, concurrent.futures.Future[Evaluation]] | None = None

    def start(self, index: int | None, theta: FloatVector) -> None:
        """See Evaluator."""
        if self._running is not None:
            raise RuntimeError("collect the last evaluation first")
        self._running = (index, self._executor.submit(self._evaluate, theta))

    def collect(self) -> Result | None:
        """See Evaluator."""
        if self._running is None or not self._running[1].done():
            return None
        index, future = self._running
        self._running = None
        return index, future.result()

    def close(self) -> None:
        """See Evaluator."""
        self._executor.shutdown(wait=True, cancel_futures=True)
