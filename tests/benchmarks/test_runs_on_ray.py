"""Runs of a comparison on a Ray cluster: results in the driver's file, none made twice, none lost with a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ray_clusters import two_nodes

from benchmarks.harness.on_ray import run_on
from benchmarks.harness.results import find_or_run, read_results
from server.ray_work.options import RayOptions
from server.ray_work.workers import open_workers

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, os, pathlib, signal, sys
settings = json.loads(sys.argv[2])
marker = pathlib.Path(settings["folder"]) / "killed"
if settings["seed"] == 2 and not marker.exists():
    marker.touch()
    os.kill(os.getppid(), signal.SIGKILL)
print("progress")
print(json.dumps({"twice": 2 * settings["seed"], "cwd": os.getcwd()}))
"""


@pytest.mark.slow
def test_runs_are_made_by_workers_and_kept_by_the_driver(tmp_path: Path) -> None:
    """The worker of one run is killed with the run: another worker makes it again."""
    script, file = tmp_path / "script.py", tmp_path / "results.jsonl"
    script.write_text(SCRIPT)
    more = {"folder": str(tmp_path)}
    with two_nodes() as cluster, open_workers(RayOptions(address=cluster.address)) as workers:
        assert workers is not None
        made = [find_or_run(file, [str(script)], {"seed": seed}, more, run_on(workers)) for seed in (1, 2, 3)]
    assert [result["twice"] for result, _ in made] == [2, 4, 6]
    assert all(seconds is not None for _, seconds in made)
    assert (tmp_path / "killed").exists()
    assert read_results(file) == [result for result, _ in made]
    assert {result["cores"] for result, _ in made} == {made[0][0]["cores"]}
    script.unlink()
    assert find_or_run(file, [str(script)], {"seed": 2}, more) == (made[1][0], None)
