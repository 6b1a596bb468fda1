"""The server's evaluation with a frozen front: the same loss and answers, from activations that were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from fleets import edge_configs, write_job
from tiny_models import reviews, write_rows

from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.fronts.frozen_predictor import FrozenPredictor
from server.evaluation import evaluate
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.mark.parametrize("kind", ["bert", "full", "causal"])
def test_an_evaluation_runs_the_front_once_for_each_row(
    tiny_export: Callable[..., Bundle], tmp_path: Path, kind: str
) -> None:
    bundle = {
        "bert": lambda: tiny_export("bert"),
        "full": lambda: tiny_export("bert", train="full"),
        "causal": lambda: tiny_export("llama", task="causal-lm"),
    }[kind]()
    engines, labels = Engines("onnxruntime", threads=1), len(bundle.manifest.task.labels)
    if kind == "causal":
        lines = [{"prompt": f"the film {index}", "completion": " was good"} for index in range(9)]
        write_rows(lines, tmp_path / "rows.jsonl")
    else:
        write_rows(reviews(9, 5), tmp_path / "rows.jsonl")
    rows = load_rows(bundle, DataConfig(str(tmp_path / "rows.jsonl")))
    theta, whole = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden), engines.make_predictor(bundle)
    frozen = FrozenPredictor(bundle, 2, theta, engines, tmp_path / "fronts", len(rows), whole)
    later = theta.copy()
    later[-3:] += np.float32(0.3)
    for index, adapter in enumerate((theta, later, theta)):
        found, expected = evaluate(frozen, adapter, rows, labels), evaluate(whole, adapter, rows, labels)
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        assert found.accuracy == expected.accuracy
        assert (frozen.counts.hits, frozen.counts.misses) == (9 * index, 9)
    other = theta.copy()
    other[:2] += np.float32(0.5)
    assert evaluate(frozen, other, rows, labels) == evaluate(whole, other, rows, labels)
    assert frozen.counts.hits == 18
    frozen.close()


def test_a_job_ends_with_the_losses_of_its_adapters_and_leaves_no_activations(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    path = write_job(tmp_path, front="train-after:2", rounds=3, min_devices=2, split=1)
    fitted, bundle = load_job(path, tiny_bundle.path)
    result = run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 2))
    assert not list((tmp_path / "server").rglob("*.front"))
    rows = load_rows(bundle, DataConfig(str(tmp_path / "test.jsonl")))
    first = evaluate(Engines(threads=1).make_predictor(bundle), bundle.initial_adapter(), rows, 2)
    assert result["loss_start"] == pytest.approx(first.loss, abs=1e-5)
