"""A fleet in one process: the same bits, the same ledger, many devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleets import edge_configs, write_job

from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_rounds

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle


@pytest.mark.parametrize("method", ["spzo", "decomfl"])
def test_many_devices_finish_and_agree_and_a_seed_says_it_all(tmp_path: Path, tiny_bundle: Bundle, method: str) -> None:
    step = {"back_perturbations": 1} if method == "decomfl" else None
    results = []
    for run in range(2):
        root = tmp_path / str(run)
        root.mkdir()
        path = write_job(root, step, method=method, rounds=5, cohort=4, min_devices=12, eval_every=2)
        fitted, bundle = load_job(path, tiny_bundle.path)
        results.append(run_in_process(fitted, bundle, root / "server", edge_configs(root, 12)))
    assert results[0]["adapter_sha256"] == results[1]["adapter_sha256"]
    assert results[0]["loss_end"] == results[1]["loss_end"]
    rounds = job_rounds(Ledger(tmp_path / "0" / "server" / LEDGER_FILE, read_only=True), "job")
    assert [row["loss"] is not None for row in rounds] == [False, True, False, True, True]
    assert [row["reports"] for row in rounds] == [4] * 5


def test_a_bandit_gives_each_device_its_p2_and_all_agree(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Real steps: every device replays logs in which devices have a P2 of their own, to the server's bits."""
    bandit = {"policy": "uniform", "back_perturbations": [1, 2, 5]}
    path = write_job(tmp_path, rounds=3, min_devices=6, bandit=bandit)
    fitted, bundle = load_job(path, tiny_bundle.path)
    run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 6))
    ledger = Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)
    attempts = queries.attempts_of(ledger, "job")
    assert any(attempt.plan.back_perturbations for attempt in attempts)
    assert sum(len(queries.choices_of(ledger, "job", made.index, made.attempt)) for made in attempts) == 18
