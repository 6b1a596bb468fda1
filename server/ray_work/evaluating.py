"""Evaluation on workers: held-out rows in pieces of whole batches; the answers are put together in the rows' order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.data.rows import picked
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.predict import BATCH_SIZE, by_length
from edge_runtime.errors import BundleError
from server.evaluation import answers, judge
from server.ray_work.workers import Recipe, Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.rows import EncodedCompletions, EncodedRows
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.engines.predict import FloatArray
    from edge_runtime.values import FloatVector
    from server.evaluation import Evaluation
    from server.ray_work.workers import Workers

PIECE = 4 * BATCH_SIZE
"""Rows of a piece: whole batches, and the same ones whatever the number of workers."""


@dataclass(frozen=True)
class HeldOut:
    """What every worker needs to evaluate adapters.

    Attributes:
        bundle_path: the bundle's folder, the same on every machine.
        bundle_sha256: its name.
        rows: the held-out rows, the shortest first.
        n_labels: number of labels.
    """

    bundle_path: str
    bundle_sha256: str
    rows: EncodedRows | EncodedCompletions
    n_labels: int


@dataclass(frozen=True)
class Opened:
    """The rows, and the loaded model that answers for them."""

    held_out: HeldOut
    predictor: Predictor


def opened(held_out: HeldOut) -> Opened:
    """Load the model on a worker.

    Raises:
        BundleError: the machine does not have the bundle, or another one.
    """
    return Opened(held_out, Engines(threads=1).make_predictor(own_bundle(held_out.bundle_path, held_out.bundle_sha256)))


def own_bundle(path: str, sha256: str) -> Bundle:
    """Open and check a worker's copy of the bundle.

    Raises:
        BundleError: the machine does not have the bundle, or another one.
    """
    bundle = open_bundle(Path(path))
    if bundle.sha256 != sha256:
        raise BundleError(
            f"a machine of the Ray cluster has bundle {bundle.sha256[:12]} in {path}, the job has {sha256[:12]}",
            "put the job's bundle in the same place on every machine, or use a shared folder",
        )
    verify_files(bundle)
    return bundle


def answered(worker: Opened, start: int, theta: FloatVector) -> FloatArray:
    """Return what the model says of a piece's rows; see evaluation.answers."""
    rows = worker.held_out.rows
    piece = picked(rows, range(start, min(start + PIECE, len(rows))))
    return answers(worker.predictor, theta, piece, worker.held_out.n_labels)


def evaluate_on(
    workers: Workers, bundle: Bundle, rows: EncodedRows | EncodedCompletions, n_labels: int
) -> Callable[[FloatVector], Evaluation]:
    """Return what evaluates an adapter, float32, (parameters,), on workers; each runs its model with one thread.

    Args:
        workers: the workers.
        bundle: a checked bundle; it must be in the same place on every machine.
        rows: the held-out rows.
        n_labels: number of labels; completions do not use it.
    """
    order = by_length(rows.tokens)
    held_out = HeldOut(str(bundle.path.resolve()), bundle.sha256, picked(rows, order), n_labels)
    recipe = Recipe(opened, Shared(held_out))

    def evaluate(theta: FloatVector) -> Evaluation:
        pieces = list(workers.in_order(recipe, answered, range(0, len(rows), PIECE), Shared(np.asarray(theta))))
        ordered = np.concatenate(pieces)
        found = np.empty_like(ordered)
        found[order] = ordered
        return judge(rows, found)

    return evaluate
