"""Jobs, cohorts, ledger, shares: the server's small parts."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.layout import Parameter
from edge_runtime.errors import ConfigError, StorageError
from edge_runtime.forward_only.replay import replay
from edge_runtime.protocol.round_log import pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.cli import main
from server.errors import JobError
from server.fleet.cohort import choose_cohort, shares
from server.job.epsilon import device_epsilon
from server.job.fitted import fit_to_bundle
from server.job.job import Job, JobPrivacy, JobStld, read_job
from server.rounds.aggregate import aggregate
from server.storage import queries
from server.storage.adapters import RoundBase
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import ClosedRound, RoundFigures, RoundPlan, TakenReport
from server.views.summary import job_rounds, job_summary

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

JOB = 'name = "job"\neval_file = "test.jsonl"\n'
PRIVATE = Job(
    name="job",
    eval_file="x",
    steps=2,
    weighting="uniform",
    step=StepRule(back_perturbations=2),
    privacy=JobPrivacy(clip=1.0, noise_multiplier=20.0),
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_job_is_read_relative_to_its_file(tmp_path: Path, tiny_bundle: Bundle) -> None:
    job = read_job(write(tmp_path / "job.toml", JOB))
    assert job.eval_file == str(tmp_path / "test.jsonl")
    assert fit_to_bundle(job, tiny_bundle.manifest, tiny_bundle.sha256).split == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "job"\n', "eval_file"),
        (JOB + "rounds = 0\n", "rounds"),
        (JOB + "round = 5\n", "round"),
        (JOB + "cohort = 2\nmin_reports = 3\n", "can never be reached"),
        (JOB + "steps = 4096\n[step]\nback_perturbations = 256\n", "more than one message can carry"),
        (JOB + "[step]\neps = 0\n", "eps"),
        (JOB + "[step]\nback_perturbations = 300\n", "back_perturbations"),
        (JOB + "[step]\nleave_one_out = true\nback_perturbations = 1\n", "leave_one_out"),
        (JOB + '[step]\nvariant = "other"\n', "variant"),
        (JOB + "[step]\nkeep_directions = 6\n[adaptive]\n", r"= 2, which \[adaptive\] may choose: keep_directions = 6"),
        (
            JOB + "[step]\nkeep_directions = 6\n[bandit]\nback_perturbations = [8, 4]\n",
            r"= 4, which \[bandit\] may choose",
        ),
    ],
)
def test_a_wrong_job_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_job(write(tmp_path / "job.toml", text))


def test_a_rule_needs_to_hold_only_with_what_may_be_chosen(tmp_path: Path) -> None:
    kept = JOB + "[step]\nkeep_directions = {}\n[adaptive]\nback_perturbations = {}\n"
    for most, adapts in ((2, "true"), (6, "false")):
        job = read_job(write(tmp_path / "job.toml", kept.format(most, adapts)))
        assert job.step.keep_directions == most


def test_a_split_that_the_bundle_has_not_is_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="split = 9 is not in the bundle; it has 1, 2"):
        fit_to_bundle(Job(name="job", eval_file="x", split=9), tiny_bundle.manifest, tiny_bundle.sha256)


@given(rounds=st.integers(1, 50), rate=st.floats(1e-4, 1.0))
def test_the_learning_rate_falls_to_nearly_zero_or_stays(rounds: int, rate: float) -> None:
    step = StepRule(learning_rate=rate)
    falling = Job(name="job", eval_file="x", rounds=rounds, step=step)
    rates = [falling.rule_of(index).learning_rate for index in range(rounds)]
    assert rates[0] == pytest.approx(rate)
    assert rates[-1] == pytest.approx(rate / rounds)
    assert rates == sorted(rates, reverse=True)
    steady = Job(name="job", eval_file="x", rounds=rounds, step=step, schedule="constant")
    assert {steady.rule_of(index).learning_rate for index in range(rounds)} == {rate}


@given(n=st.integers(1, 30), cohort=st.integers(0, 40), factor=st.floats(1, 3), seed=st.integers(0, 99))
def test_cohorts(n: int, cohort: int, factor: float, seed: int) -> None:
    names = [f"d{index}" for index in range(n)]
    chosen = choose_cohort(names, cohort, factor, seed, 0, 0)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(names)
    assert len(chosen) == (n if cohort == 0 else min(n, int(np.ceil(cohort * factor))))
    assert chosen == choose_cohort(names[::-1], cohort, factor, seed, 0, 0)


def test_every_device_gets_its_turn() -> None:
    names = [f"d{index}" for index in range(10)]
    seen = {name for r in range(40) for name in choose_cohort(names, 2, 1.0, 0, r, 0)}
    assert seen == set(names)


def test_shares_add_up() -> None:
    assert shares({"b": 30, "a": 10}, "examples") == {"a": 0.25, "b": 0.75}
    assert list(shares({"b": 1, "a": 9}, "uniform").values()) == [0.5, 0.5]


def test_aggregation_does_not_depend_on_the_order_of_arrival() -> None:
    parameters = [Parameter("front", [30], 0, 0), Parameter("back", [50], 2, 30)]
    job = Job(name="job", eval_file="x", split=1, steps=2, step=StepRule(back_perturbations=3))
    rng = np.random.Generator(np.random.PCG64(0))
    reports = {
        name: TakenReport(pack_scalars(rng.normal(size=6).astype(np.float32)), rows)
        for name, rows in (("b", 10), ("a", 20), ("c", 5))
    }
    plan = RoundPlan(1, job.step)
    first = aggregate(parameters, job, 0, plan, RoundBase("a" * 64, None, None), reports)
    second = aggregate(parameters, job, 0, plan, RoundBase("a" * 64, None, None), dict(reversed(reports.items())))
    assert first.log == second.log
    assert [d.device for d in first.log.devices] == ["a", "b", "c"]
    assert first.mean_square is not None
    assert replay(np.zeros(80, np.float32), first.log).any()


# -- the ledger -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def test_a_job_can_be_taken_up_but_not_changed(ledger: Ledger) -> None:
    assert not ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})
    assert ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})
    with pytest.raises(JobError, match=r"another bundle, fleet or configuration \(rounds\)"):
        ledger.begin_job("job", "default", "b" * 64, {"rounds": 3})
    with pytest.raises(JobError, match="another bundle"):
        ledger.begin_job("job", "default", "c" * 64, {"rounds": 2})
    assert ledger.begin_job("job", "default", "b" * 64, {"rounds": 2, "deadline_s": 5.0})
    ledger.end_job("job", "finished", "somewhere")
    with pytest.raises(JobError, match="is finished; its result is in somewhere"):
        ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})
    ledger.open_round("job", 0, 0, '{"split": 2, "rule": {}}', "a" * 64, None, {"x": None, "y": 3})
    values = {"scalars": b"1234", "examples": 5, "loss": 0.5, "seconds": 1.0, "front_passes": 2, "back_passes": 4}
    ledger.take_report("job", 0, 0, "x", values)
    ledger.add_bytes("job", 0, 0, "x", up=10, down=20)
    ledger.add_bytes("job", 0, 0, "x", down=5)
    closed = ClosedRound(0, "a" * 64, "c" * 64, "d" * 64, 99, 5, 1.5, RoundFigures(2, 0.5, None, 0.1, 0.2))
    ledger.close_round("job", 0, closed)
    ledger.round_evaluated("job", 0, 0.4, 0.9)
    ledger.close()
    again = Ledger(tmp_path / "l.sqlite", read_only=True)
    assert queries.closed_rounds(again, "job") == [closed]
    summary = job_summary(again, "job")
    assert (summary["bytes_up_per_device_round"], summary["bytes_down_per_device_round"]) == (10, 25)
    assert (summary["loss_end"], summary["accuracy_end"], summary["back_passes"]) == (0.4, 0.9, 4)
    (row,) = job_rounds(again, "job")
    assert (row["offered"], row["reports"], row["state"]) == (2, 1, "aggregated")


def test_epsilon_is_that_of_the_device_that_releases_most(ledger: Ledger) -> None:
    """A bandit gives devices their own P2: of two rounds, x sends 2 steps of 2 and 2 of 9 scalars, y 4 of 2."""
    ledger.begin_job("job", "default", "b" * 64, msgspec.to_builtins(PRIVATE))
    for index, own in enumerate(({}, {"x": 9})):
        plan = RoundPlan(2, PRIVATE.step, back_perturbations=own)
        ledger.open_round("job", index, 0, msgspec.json.encode(plan).decode(), "a" * 64, None, {"x": None, "y": None})
    found = job_summary(ledger, "job")["epsilon"]
    assert found == pytest.approx(device_epsilon(2 * (2 + 9), 20.0, 1e-5))


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    ledger.begin_job("job", "default", "b" * 64, {"rounds": 1})
    with pytest.raises(ZeroDivisionError), ledger.transaction():
        ledger.end_job("job", "finished", None)
        _ = 1 / 0
    assert queries.job_names(ledger) == ["job"]
    found = queries.find_job(ledger, "job")
    assert found is not None
    assert found.state == "running"


def test_a_job_of_an_earlier_covey_is_the_same_job_when_there_are_new_fields(tmp_path: Path) -> None:
    job = Job(name="job", eval_file="e", rounds=3, stld=JobStld(levels=[1]))
    now = msgspec.to_builtins(job)
    before = {name: value for name, value in now.items() if name not in ("front", "robust", "eval_data")}
    before["stld"] = {name: value for name, value in now["stld"].items() if name not in ("kinds", "forward_from")}
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        assert not ledger.begin_job("job", "default", "b" * 64, before)
        assert ledger.begin_job("job", "default", "b" * 64, now)
        other = msgspec.to_builtins(msgspec.structs.replace(job, stld=JobStld(levels=[1], forward_from=1)))
        with pytest.raises(JobError, match=r"configuration \(stld\)"):
            ledger.begin_job("job", "default", "b" * 64, other)


@pytest.mark.sqlite("it changes the file")
def test_another_schema_and_no_ledger_are_said(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "l.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="schema version 99"):
        Ledger(tmp_path / "l.sqlite")
    (tmp_path / "noise").write_bytes(b"not a database at all, but long enough to look at" * 10)
    with pytest.raises(StorageError, match="is damaged: file is not a database"):
        Ledger(tmp_path / "noise")
    with pytest.raises(JobError, match="no ledger"):
        Ledger(tmp_path / "missing", read_only=True)


def test_commands_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "list", "--state-dir", str(tmp_path / "nowhere")]) == JobError.exit_code
    assert "no ledger" in capsys.readouterr().err
    Ledger(tmp_path / "ledger.sqlite").close()
    assert main(["job", "show", "x", "--state-dir", str(tmp_path), "--format", "json"]) == JobError.exit_code
    assert '"there is no job x"' in capsys.readouterr().out
    assert main(["device", "list", "--state-dir", str(tmp_path), "--format", "json"]) == 0
    assert capsys.readouterr().out == '{"devices": []}\n'
