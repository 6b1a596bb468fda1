"""A job that says nothing of how devices train gets what was measured for such a bundle; every other one stays."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import reviews, toml, write_rows

from server.advice.findings import FROZEN_HEAD, PROMPT, PROMPT_NORM
from server.advice.left_open import ABOUT_ELSE, completed, leaves_open
from server.job.job import Job, job_of
from server.serving.loaded_job import load_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

PLAIN = {"name": "job", "eval_file": "/rows.jsonl"}
ONE_OF_EACH: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "split": 1,
    "method": "mezo",
    "server_momentum": 0.1,
    "schedule": "constant",
    "front": "train",
    "step": {"eps": 0.01},
    "stld": {},
    "adaptive": {},
    "bandit": {},
    "privacy": {"clip": 1.0, "noise_multiplier": 1.0},
    "robust": {"quarantine_after": 3},
}


@pytest.fixture(scope="module")
def at_head(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2, 3))


def job_for(table: dict[str, Any], bundle: Bundle) -> Job:
    return completed(table, bundle.manifest, bundle.sha256)


def test_every_field_of_a_job_is_of_one_kind() -> None:
    assert set(Job.__struct_fields__) == ABOUT_ELSE | ONE_OF_EACH.keys()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_job_that_says_how_stays_as_it_is(at_head: Bundle, name: str) -> None:
    table = PLAIN | {"weighting": "uniform", name: ONE_OF_EACH[name]}
    assert not leaves_open(table)
    assert job_for(table, at_head) == job_of(table)


def test_a_head_gets_what_was_measured_for_heads(at_head: Bundle) -> None:
    job = job_for({**PLAIN, "rounds": 7, "cohort": 2}, at_head)
    assert (job.rounds, job.cohort) == (7, 2)
    assert (job.steps, job.batch_size, job.split) == (FROZEN_HEAD.steps, FROZEN_HEAD.batch_size, 3)
    assert (job.step.back_perturbations, job.step.learning_rate) == (
        FROZEN_HEAD.back_perturbations,
        FROZEN_HEAD.learning_rate,
    )
    assert job.stld is None
    assert job.front == "frozen"


def test_a_prompts_norm_gets_what_was_measured_for_it(tiny_export: Callable[..., Bundle]) -> None:
    job = job_for(PLAIN, tiny_export("llama", task="classify-prompt", norm=True, splits=(2, 3)))
    assert (job.rounds, job.steps, job.batch_size, job.split) == (PROMPT_NORM.rounds, 4, 8, 3)
    assert (job.step.back_perturbations, job.step.learning_rate) == (64, PROMPT_NORM.learning_rate)
    assert job.front == "frozen"
    plain = job_for(PLAIN, tiny_export("llama", task="classify-prompt"))
    assert plain.frozen_rounds == 0
    assert plain.step.learning_rate == PROMPT.learning_rate


def test_where_the_bundle_has_levels_devices_may_backpropagate(tiny_export: Callable[..., Bundle]) -> None:
    job = job_for(PLAIN, tiny_export("bert", splits=(1, 2, 3), levels=(1, 2, 3)))
    assert job.stld is not None
    assert job.stld.forward_only
    assert job.frozen_rounds == 0


def test_what_nobody_measured_has_the_defaults(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama", task="causal-lm", splits=(1,))
    assert leaves_open(PLAIN)
    assert job_for(PLAIN, bundle) == job_of(PLAIN)


def test_a_table_without_rows_is_for_the_job_to_refuse() -> None:
    assert not leaves_open({"name": "job"})


def test_a_job_of_a_file_is_filled_and_the_log_says_so(
    tmp_path: Path, at_head: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(reviews(8, 1), tmp_path / "rows.jsonl")
    (tmp_path / "job.toml").write_text(toml({"name": "job", "eval_file": "rows.jsonl"}))
    caplog.set_level(logging.INFO)
    fitted, _ = load_job(tmp_path / "job.toml", at_head.path)
    assert fitted.job.step.back_perturbations == FROZEN_HEAD.back_perturbations
    assert "leaves open how devices train" in caplog.text
    assert FROZEN_HEAD.name in caplog.text
    assert msgspec.convert(msgspec.to_builtins(fitted.job), Job) == fitted.job
