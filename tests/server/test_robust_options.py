"""``[robust]`` of job.toml: what could do nothing, or not what it says, is refused with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_runtime.errors import ConfigError
from server.job.job import job_of, read_job
from server.job.robust import Robust

if TYPE_CHECKING:
    from pathlib import Path

JOB = 'name = "job"\neval_file = "test.jsonl"\n'
UNIFORM = JOB + 'weighting = "uniform"\nmin_reports = 3\n'
SHARED = "[step]\nshared_directions = true\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (JOB + "[robust]\n", "turns nothing on", "docs/robust.md"),
        (JOB + '[robust]\naggregate = "median"\n', "each has its own", "shared_directions = true"),
        (
            JOB + "min_reports = 3\n" + SHARED + '[robust]\naggregate = "median"\n',
            "counts every device once",
            "uniform",
        ),
        (
            JOB + 'weighting = "uniform"\n' + SHARED + '[robust]\naggregate = "trimmed"\n',
            "outvote nobody",
            "min_reports",
        ),
        (JOB + "[robust]\ntrim_share = 0.1\n", 'trim_share with aggregate = "mean"', '"trimmed"'),
        (UNIFORM + SHARED + '[robust]\naggregate = "median"\ntrim_share = 0.1\n', "trim_share", '"trimmed"'),
        (JOB + "[robust]\nmax_delta_norm = 1.0\n", "without \\[stld\\]", "leave max_delta_norm out"),
        (JOB + "[robust]\nmax_delta_norm_ratio = 2.0\n", "without \\[stld\\]", "leave max_delta_norm_ratio out"),
        (UNIFORM + "[robust]\nmax_examples = 100\n", "count alike", "leave max_examples out"),
        (JOB + SHARED + "[robust]\ncompare_paths = true\n", "always compared", "leave compare_paths out"),
        (JOB + "[robust]\nquarantine_after = 0\n", "quarantine_after", ""),
        (JOB + "[robust]\nclip_scalars = 0.5\n", "clip_scalars", ""),
        (JOB + "[robust]\nclip_scalar = 3\n", "clip_scalar", ""),
        (JOB + '[robust]\naggregate = "krum"\n', "aggregate", ""),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_job(path)
    assert hint in caught.value.hint


def test_what_makes_sense_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(UNIFORM + SHARED + '[robust]\naggregate = "trimmed"\nclip_scalars = 5\nquarantine_after = 3\n')
    assert read_job(path).robust == Robust(aggregate="trimmed", clip_scalars=5.0, quarantine_after=3)
    table = {"name": "job", "eval_file": "/x", "stld": {}, "robust": {"max_delta_norm": 1, "max_delta_norm_ratio": 3}}
    assert job_of(table).robust == Robust(max_delta_norm=1.0, max_delta_norm_ratio=3.0)
    assert job_of({"name": "job", "eval_file": "/x"}).robust is None
