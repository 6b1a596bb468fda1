"""Evaluation on workers of Ray: the same loss and accuracy, bit for bit, as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_models import reviews, write_rows

from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import BundleError
from server.evaluation import evaluate
from server.ray_work.evaluating import PIECE, evaluate_on
from server.ray_work.options import RayOptions
from server.ray_work.workers import Workers, open_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector


@pytest.fixture(
    scope="module", params=[pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)]
)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with open_workers(RayOptions(request.param)) as opened:
        assert opened is not None
        yield opened


def moved(bundle: Bundle) -> FloatVector:
    """An adapter whose answers are not all alike."""
    theta = bundle.initial_adapter()
    return theta + np.random.Generator(np.random.PCG64(3)).normal(scale=0.1, size=theta.size).astype(np.float32)


@pytest.mark.parametrize("n", [1, 40, 3 * PIECE + 7])
def test_rows_are_divided_and_nothing_changes(tmp_path: Path, workers: Workers, tiny_bundle: Bundle, n: int) -> None:
    rows = load_rows(tiny_bundle, DataConfig(path=str(write_rows(reviews(n, 1), tmp_path / "rows.jsonl"))))
    theta = moved(tiny_bundle)
    alone = evaluate(Engines(threads=1).make_predictor(tiny_bundle), theta, rows, 2)
    assert evaluate_on(workers, tiny_bundle, rows, 2)(theta) == alone


@pytest.mark.slow
def test_completions_are_divided_too(tmp_path: Path, workers: Workers, tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama-tied", task="causal-lm")
    texts = [
        {"prompt": row["text"], "completion": f" {row['label']} {'so ' * (i % 5)}"}
        for i, row in enumerate(reviews(150, 1))
    ]
    rows = load_rows(bundle, DataConfig(path=str(write_rows(texts, tmp_path / "rows.jsonl"))))
    theta = moved(bundle)
    alone = evaluate(Engines(threads=1).make_predictor(bundle), theta, rows, 0)
    assert evaluate_on(workers, bundle, rows, 0)(theta) == alone


def test_a_bundle_that_a_worker_does_not_have_is_named(tmp_path: Path, workers: Workers, bundle_copy: Bundle) -> None:
    rows = load_rows(bundle_copy, DataConfig(path=str(write_rows(reviews(8, 1), tmp_path / "rows.jsonl"))))
    evaluated = evaluate_on(workers, bundle_copy, rows, 2)
    bundle_copy.path.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=str(bundle_copy.path)):
        evaluated(moved(bundle_copy))
