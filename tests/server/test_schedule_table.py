"""``[schedule]`` of job.toml: the same job as the older spellings make, and none where both contradict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.errors import ConfigError
from server.job.job import job_of, read_job
from server.job.schedule import spread

if TYPE_CHECKING:
    from server.job.job import Job


def job(**fields: Any) -> Job:
    return job_of({"name": "scheduled", "eval_file": "/rows.jsonl", "rounds": 6, **fields})


@pytest.mark.parametrize(
    ("schedule", "older"),
    [
        ({}, {}),
        ({"learning_rate": "constant"}, {"schedule": "constant"}),
        ({"learning_rate": "linear"}, {"schedule": "linear"}),
        ({"train_front_from": 0}, {"front": "train"}),
        ({"train_front_from": 4}, {"front": "train-after:4"}),
        ({"train_front_from": "never"}, {"front": "frozen"}),
        ({"forward_from": 3}, {"stld": {"steps": 2, "forward_from": 3}}),
    ],
)
def test_the_table_makes_the_same_job_as_the_older_spellings(schedule: dict[str, Any], older: dict[str, Any]) -> None:
    beside = {"stld": {"steps": 2}} if "forward_from" in schedule else {}
    assert job(schedule=schedule, **beside) == job(**older)


def test_what_is_said_twice_and_alike_is_taken() -> None:
    both = job(schedule={"forward_from": 3, "train_front_from": "never"}, stld={"forward_from": 3}, front="frozen")
    assert both == job(stld={"forward_from": 3}, front="frozen")


def test_each_round_is_as_the_table_says() -> None:
    made = job(
        schedule={"learning_rate": "constant", "forward_from": 2, "train_front_from": 4}, stld={"kinds": ["top"]}
    )
    assert [made.rule_of(index).front_is_frozen for index in range(6)] == [True] * 4 + [False] * 2
    assert {made.rule_of(index).learning_rate for index in range(6)} == {made.step.learning_rate}
    assert made.stld is not None
    assert made.stld.forward_from == 2


def test_a_file_has_the_table(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('name = "a"\neval_file = "rows.jsonl"\n[schedule]\ntrain_front_from = "never"\n')
    assert read_job(path).front == "frozen"
    path.write_text('name = "a"\neval_file = "rows.jsonl"\n[schedule]\nforward_form = 1\n')
    with pytest.raises(ConfigError, match="did you mean `forward_from`"):
        read_job(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"schedule": {"train_front_from": 2}, "front": "frozen"},
            'train_front_from = 2, the job also has front = "fro',
        ),
        ({"schedule": {"train_front_from": "never"}, "front": "train"}, '"never", the job also has front = "train"'),
        (
            {"schedule": {"forward_from": 2}, "stld": {"forward_from": 3}},
            "forward_from = 2, the job also has forward_f",
        ),
        ({"schedule": {"forward_from": 2}}, "without \\[stld\\]"),
        ({"schedule": {"forward_from": -1}, "stld": {}}, "\\[schedule\\]: .*>= 0"),
        ({"schedule": {"train_front_from": "later"}}, "\\[schedule\\]: .*later"),
        ({"schedule": {"learning_rate": "cosine"}}, "\\[schedule\\]: .*cosine"),
        ({"schedule": {"forward_from": 1}, "stld": 3}, "stld"),
        ({"schedule": "cosine"}, "cosine"),
    ],
)
def test_a_wrong_or_contradicting_table_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(**fields)


def test_a_job_without_the_table_is_not_touched() -> None:
    table = {"name": "a", "schedule": "linear", "stld": {"forward_from": 1}}
    assert spread(table) is table
