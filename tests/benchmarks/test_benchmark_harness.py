"""The benchmarks' harness: what a worker profiles, job files, tables, and the results of quick runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.harness import comparison
from benchmarks.harness.fleet_run import job_toml
from benchmarks.harness.tables import markdown_table, mean_and_deviation
from benchmarks.workers.products import product_shapes
from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.batch import Batch
from edge_runtime.files.toml_file import read_toml


@pytest.mark.slow
def test_the_profiled_products_multiply_and_begin_with_the_batch(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("bert")
    batch = Batch(np.ones((3, 5), np.int64), np.ones((3, 5), np.int64), np.zeros(3, np.int64))
    found = product_shapes(bundle, batch, 1)
    assert len(found) >= 6 * bundle.manifest.model.layers  # query, key, value, output, and two of the feed-forward part
    assert all(first[-1] == second[-2] for first, second in found)
    assert found[0][0][:2] == [3, 5]


class Read(msgspec.Struct):
    """What is read back."""

    name: str
    rounds: int
    stld: dict[str, Any]


def test_a_job_file_has_its_fields_before_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    tables = {"stld": {"steps": 3}, "stld.device_levels": {"device-00": 0}}
    path.write_text(job_toml({"name": "run", "rounds": 2}, tables))
    assert read_toml(path, Read) == Read("run", 2, {"steps": 3, "device_levels": {"device-00": 0}})


def test_one_run_has_no_deviation_and_no_figure_an_empty_cell() -> None:
    runs = [{"loss": 0.5, "own": None}, {"loss": 0.7, "own": None}]
    assert mean_and_deviation(runs, "loss") == "0.600 ± 0.141"
    assert mean_and_deviation(runs[:1], "loss") == "0.500"
    assert mean_and_deviation(runs, "own") == ""
    assert markdown_table(("a", "b"), [(1, "x")]) == "| a | b |\n|---|---|\n| 1 | x |"


def test_a_quick_run_starts_from_no_results_and_its_summary_keeps_them(tmp_path: Path) -> None:
    parser = comparison.parser_of(None, "convergence", ["minilm"])
    flags = ["--quick", "--results", str(tmp_path / "results.jsonl")]
    kept = tmp_path / "quick.jsonl"
    kept.write_text("{}\n")
    assert comparison.parse(parser, [*flags, "--summary"]).results == kept
    assert kept.exists()
    assert comparison.parse(parser, flags).results == kept
    assert not kept.exists()
