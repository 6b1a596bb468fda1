"""What a run had spent: passes that devices really made, counted beside what their reports say."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import reviews, write_rows

from benchmarks.harness.division import write_device_rows, write_held_out
from benchmarks.harness.fleet_run import fleet_run
from benchmarks.harness.spent import frame_tokens, spent_by_round
from benchmarks.learning import convergence
from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.batch import Batch
from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import EncodedRows, load_rows
from edge_runtime.engines.bundle_engine import BundleFront
from server.samples.reviews import Division, Review, completion

LAYERS, SPLIT, ROWS, BATCH, STEPS, P2 = 3, 2, 12, 4, 3, 5
DEVICES = ("device-a", "device-b")
EPOCH = ROWS // BATCH
"""Batches of all rows: a round's steps see each row once."""


def spent_of(tmp_path: Path, bundle: Bundle, **fields: Any) -> list[float]:
    """Return the forward equivalents of each round of a job of three rounds on two devices, each round alone."""
    devices = {}
    for seed, name in enumerate(DEVICES):
        devices[name] = tmp_path / f"{name}.jsonl"
        write_rows(reviews(ROWS, seed), devices[name])
    write_rows(reviews(8, 9), tmp_path / "test.jsonl")
    job = {"eval_file": str(tmp_path / "test.jsonl"), "rounds": 3, "steps": STEPS, "batch_size": BATCH, "split": SPLIT}
    step = {"back_perturbations": P2, "learning_rate": 0.05}
    job = {**job, "min_devices": len(DEVICES), "seed": 1, **fields}
    with fleet_run(tmp_path, bundle.path, job, {"step": step}, devices) as ran:
        spent = spent_by_round(ran, LAYERS)
    until = [0.0, *(at.forwards for at in spent.values())]
    return [after - before for before, after in itertools.pairwise(until)]


BACKS = 2 * P2 * STEPS * len(DEVICES) * (1 - SPLIT / LAYERS)
FRONTS = len(DEVICES) * SPLIT / LAYERS
"""What one front pass of every device costs."""
MOST_TOKENS = 32
FRAME = frame_tokens(MOST_TOKENS) / MOST_TOKENS / BATCH


@pytest.mark.parametrize(
    ("front", "fronts"),
    [
        ("train", [2 * STEPS, 2 * STEPS, 2 * STEPS]),
        ("frozen", [EPOCH + FRAME, 0, 0]),
        ("train-after:1", [EPOCH + FRAME, 2 * STEPS, 2 * STEPS]),
    ],
)
def test_rows_that_were_kept_cost_no_front_pass(
    tmp_path: Path, tiny_bundle: Bundle, front: str, fronts: list[int]
) -> None:
    found = spent_of(tmp_path, tiny_bundle, front=front)
    assert found == pytest.approx([passes * FRONTS + BACKS for passes in fronts])


def test_the_rows_that_were_run_are_those_that_are_counted(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every front that devices and server run is noted: a device's row alone, once in all rounds; a frame's tokens."""
    alone: Counter[tuple[int, ...]] = Counter()
    others: list[Batch] = []
    run = BundleFront.front_arrays

    def noted(self: BundleFront, batch: Batch) -> dict[str, Any]:
        if len(batch.input_ids) == 1 and len(set(batch.input_ids[0])) > 1:
            alone[tuple(batch.input_ids[0].tolist())] += 1
        else:
            others.append(batch)
        return run(self, batch)

    monkeypatch.setattr(BundleFront, "front_arrays", noted)
    spent_of(tmp_path, tiny_bundle, front="frozen")
    wanted: Counter[tuple[int, ...]] = Counter()
    for name in DEVICES:
        rows = load_rows(tiny_bundle, DataConfig(str(tmp_path / f"{name}.jsonl")))
        assert isinstance(rows, EncodedRows)
        wanted.update({tuple(tokens) for tokens in rows.tokens})
    assert wanted.total() == ROWS * len(DEVICES)
    assert {row: alone[row] for row in wanted} == dict(wanted)
    learners = len(DEVICES) + 1  # the server keeps its held-out rows, too
    assert tiny_bundle.manifest.task.max_tokens == MOST_TOKENS
    assert sum(batch.input_ids.size for batch in others) == learners * frame_tokens(MOST_TOKENS)


@pytest.mark.slow
def test_a_causal_model_pays_for_its_output_behind_every_split(
    tmp_path: Path, tiny_export: Callable[..., Bundle]
) -> None:
    """The comparison's own run of next-token prediction: an output that costs as much as five layers is in the back."""
    bundle = tiny_export("llama", task="causal-lm")
    texts = [[Review(row["text"], row["label"]) for row in reviews(8, seed)] for seed in range(21)]
    write_held_out(Division(texts[:20], texts[20]), tmp_path, completion)
    write_device_rows(texts[:20], tmp_path / convergence.DEVICE_ROWS, row_of=completion)
    cohort, layers = 5, LAYERS + 5
    job = {"method": "spzo", "rounds": 1, "steps": 1, "batch_size": BATCH, "cohort": cohort, "min_devices": 20}
    settings = {
        "root": str(tmp_path),
        "bundle": str(bundle.path),
        "rows": "validation",
        "layers": layers,
        "job": {**job, "min_reports": cohort, "eval_every": 1, "seed": 1, "split": SPLIT, "front": "frozen"},
        "step": {"back_perturbations": P2, "learning_rate": 0.5},
    }
    found = convergence.run_one(settings)
    share = SPLIT / layers
    assert found["forwards"] == pytest.approx(cohort * ((1 + FRAME) * share + 2 * P2 * (1 - share)), abs=0.05)
    assert found["loss_end"] != found["loss_start"] > 1
    assert [len(found[key]) for key in ("curve", "seconds", "bytes")] == [1, 1, 1]
    assert found["bytes"][0] > cohort * 4 * P2
