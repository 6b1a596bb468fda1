"""The training that a process's sessions share: one round after the other, given up where it is not wanted any more."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.plans import AdapterRef, BlobRef, SyncPlan, TrainPlan
from edge_runtime.protocol.reports import RoundReport, Synced
from edge_runtime.protocol.round_log import unpack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.swarm.asked import Answer, Asked
from server.swarm.drawn_rows import DRAWN_ROWS, write_drawn_rows
from server.swarm.training import Training, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@contextlib.contextmanager
def training(bundle: Bundle, folder: Path) -> Iterator[tuple[Training, queue.Queue[Answer]]]:
    made = Training(TrainingOptions(bundle.path, None, processes=2), folder, None)
    try:
        yield made, queue.Queue()
    finally:
        made.close()


def plan(bundle: Bundle, **changes: Any) -> TrainPlan:
    start = AdapterRef(BlobRef(bundle.initial_sha256, 4), None, None)
    fields: dict[str, Any] = {
        "job": "load",
        "job_seed": 1,
        "round": 0,
        "attempt": 0,
        "bundle_sha256": bundle.sha256,
        "adapter": start,
        "rule": StepRule(back_perturbations=2),
        "split": bundle.manifest.splits[0],
        "steps": 2,
        "batch_size": 4,
        "mean_square": None,
        "privacy": None,
        "deadline_s": 60.0,
        "blob_url": "http://127.0.0.1:1/blobs",
    }
    return TrainPlan(**fields | changes)


def asked(what: TrainPlan | SyncPlan, device: str, goes_on: Callable[[], bool] = lambda: True) -> Asked:
    return Asked(what, device, "http://127.0.0.1:1/blobs", goes_on)


def test_rounds_of_many_sessions_are_trained_in_turn_each_with_its_own_scalars(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with training(tiny_bundle, tmp_path) as (made, answers):
        for device in ("a", "b", "a"):
            made.begin(asked(plan(tiny_bundle), device), answers.put)
        reports = [answers.get(timeout=120) for _ in range(3)]
    assert all(isinstance(report, RoundReport) for report in reports)
    found = [report for report in reports if isinstance(report, RoundReport)]
    scalars = [unpack_scalars(report.scalars, 2, StepRule(back_perturbations=2).scalars_per_step) for report in found]
    assert [report.device for report in found] == ["a", "b", "a"]
    assert np.array_equal(scalars[0], scalars[2])
    assert not np.array_equal(scalars[0], scalars[1])
    assert all(report.seconds > 0 and report.examples == DRAWN_ROWS for report in found)
    assert made.trains.bundle_sha256 == tiny_bundle.sha256


def test_a_round_that_is_not_wanted_any_more_is_given_up_before_its_next_step(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    asks = iter([True, True, False])
    with training(tiny_bundle, tmp_path) as (made, answers):
        made.begin(asked(plan(tiny_bundle, steps=4), "a", lambda: next(asks)), answers.put)
        assert answers.get(timeout=120) is None
    assert list(asks) == []  # it began, and was asked after two of four steps


def test_an_adapter_that_is_here_is_proved_without_fetching_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    start = plan(tiny_bundle).adapter
    sync = SyncPlan(
        job="load", round=1, bundle_sha256=tiny_bundle.sha256, adapter=start, final=True, blob_url="http://127.0.0.1:1"
    )
    with training(tiny_bundle, tmp_path) as (made, answers):
        made.begin(asked(sync, "a"), answers.put)
        proof = answers.get(timeout=120)
    assert isinstance(proof, Synced)
    assert (proof.adapter_sha256, proof.blob_bytes) == (tiny_bundle.initial_sha256, 0)


def test_what_goes_wrong_in_one_round_is_its_answer_and_the_next_is_trained(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with training(tiny_bundle, tmp_path) as (made, answers):
        made.begin(asked(plan(tiny_bundle, bundle_sha256="0" * 64), "a"), answers.put)
        made.begin(asked(plan(tiny_bundle), "a"), answers.put)
        refused, report = answers.get(timeout=120), answers.get(timeout=120)
    assert isinstance(refused, ConfigError)
    assert "--bundle" in refused.hint
    assert isinstance(report, RoundReport)


def test_the_end_gives_up_what_waits(tiny_bundle: Bundle, tmp_path: Path) -> None:
    begun, ends = threading.Event(), threading.Event()

    def goes_on() -> bool:
        begun.set()
        return ends.wait(120)

    with training(tiny_bundle, tmp_path) as (made, answers):
        made.begin(asked(plan(tiny_bundle), "a", goes_on), answers.put)
        made.begin(asked(plan(tiny_bundle), "b"), answers.put)
        assert begun.wait(120)
        threading.Timer(0.2, ends.set).start()  # while close waits for it
    assert answers.empty()


@pytest.mark.parametrize(("kind", "task"), [("bert", "classify-head"), ("llama", "causal-lm")])
def test_drawn_rows_are_rows_of_the_task(
    kind: str, task: str, tiny_export: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = tiny_export(kind, task=task)
    path = write_drawn_rows(tmp_path / "rows.jsonl", bundle.manifest.task, np.random.Generator(np.random.PCG64(1)))
    rows = load_rows(bundle, DataConfig(path=str(path)))
    assert len(rows) == DRAWN_ROWS
    assert len({tuple(tokens) for tokens in rows.tokens}) > DRAWN_ROWS / 4
