"""The job of a load test: MiniLM's adapter, trained by sessions that answer at once (covey swarm's)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.fleet_run import job_toml
from benchmarks.harness.provenance import ROOT
from edge_runtime.bundle.folder import open_bundle
from server.demo.recipes import RECIPES
from server.job.selector import SWARM

if TYPE_CHECKING:
    from pathlib import Path


def load_bundle() -> Path:
    """Return MiniLM's bundle, exported once."""
    return export_once(sample_model("minilm"), ROOT / ".covey" / "load" / "bundle", *RECIPES["minilm"].export_flags)


def write_load_job(folder: Path, bundle: Path, devices: int, cohort: int, rounds: int, **more: object) -> Path:
    """Write ``job.toml`` and its held-out rows; return the job's path.

    Args:
        folder: receives both.
        bundle: what is trained.
        devices: that must be online before the first round.
        cohort: reports of a round.
        rounds: number of rounds.
        more: fields of the job, its name among them.
    """
    fields = {
        "eval_file": "held-out.jsonl",
        "devices": f"tag:{SWARM}",
        "rounds": rounds,
        "cohort": cohort,
        "min_reports": cohort,
        "min_devices": devices,
        "eval_every": rounds,
        "deadline_s": 600.0,
        **more,
    }
    path = folder / "job.toml"
    path.write_text(job_toml(fields, {"step": {"learning_rate": 1e-5}}))
    rows = [{"text": "a film", "label": label} for label in open_bundle(bundle).manifest.task.labels]
    (folder / "held-out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
