"""Devices whose contributions are rejected time and again: excluded from the job, also after a restart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import JOB, Bench, ScriptedDevice, coordinator, good_report
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.protocol.reports import PlanRefused
from edge_runtime.protocol.round_log import pack_scalars
from server.cli import main
from server.compose import Composed
from server.errors import JobError
from server.fleet.exclusion import excluded, own_refusal, rejection, rejections
from server.job.job import Job
from server.job.robust import Robust
from server.storage import queries
from server.views.summary import job_shown

if TYPE_CHECKING:
    from collections.abc import Callable

EXCLUDES = msgspec.structs.replace(JOB, rounds=6, min_devices=2, robust=Robust(quarantine_after=2))


def wrong(plan: Any) -> list[Any]:
    return [good_report(plan, "bad", scalars=pack_scalars(np.array([np.nan, 1], np.float32)))]


def drive(made: Composed, devices: list[ScriptedDevice], now: list[float], until: Callable[[], bool]) -> None:
    made.job_run.begin(resumed=made.resumed)
    try:
        for _ in range(5000):
            if until() or made.job_run.step():
                return
            for device in devices:
                device.turn()
            now[0] += 0.01 if made.coordinator.handle_next(0.001) else 0.5
        raise AssertionError("the job does not end")
    finally:
        made.job_run.close()


def fleet(bench: Bench, answer: Callable[[Any], list[Any]]) -> tuple[ScriptedDevice, list[ScriptedDevice]]:
    bad = ScriptedDevice(bench, "bad", answer)
    return bad, [bad, ScriptedDevice(bench, "good", lambda plan: [good_report(plan, "good")])]


@pytest.mark.parametrize("restart_after", [None, 1, 2, 4])
def test_a_device_is_excluded_after_rejections_in_a_row_and_stays_so(bench: Bench, restart_after: int | None) -> None:
    now = [0.0]
    bad, devices = fleet(bench, wrong)
    if restart_after is not None:
        with coordinator(bench, EXCLUDES, lambda: now[0]) as (made, _ledger):
            drive(made, devices, now, lambda: len(made.job_run.chain.closed) >= restart_after)
    with coordinator(bench, EXCLUDES, lambda: now[0]) as (made, ledger):
        drive(made, devices, now, lambda: False)
        offers = [offer for offer in queries.offers_of(ledger, "job") if offer.device == "bad"]
        shown = job_shown(ledger, "job")
    assert [offer.state for offer in offers] == ["refused", "refused"]
    assert shown["rounds"] == 6
    assert shown["rejected"] == {"bad": 2}
    assert list(shown["excluded"]) == ["bad"]
    assert "2 contributions in a row were rejected, the last one: a scalar is not finite" in shown["excluded"]["bad"]
    assert {ack.outcome for ack in bad.acks} == {"invalid"}


def test_a_good_report_begins_the_count_anew(bench: Bench) -> None:
    now = [0.0]

    def now_and_then(plan: Any) -> list[Any]:
        return wrong(plan) if plan.round % 2 else [good_report(plan, "bad")]

    _, devices = fleet(bench, now_and_then)
    with coordinator(bench, EXCLUDES, lambda: now[0]) as (made, ledger):
        drive(made, devices, now, lambda: False)
        shown = job_shown(ledger, "job")
    assert (shown["rejected"], shown["excluded"]) == ({"bad": 3}, {})


def test_an_excluded_device_can_report_nothing_more_in_the_round_that_is_open(bench: Bench) -> None:
    """Else the report would begin its count anew, and a restart would find it in the job again."""
    now = [0.0]
    job = msgspec.structs.replace(EXCLUDES, rounds=1, robust=Robust(quarantine_after=1))
    bad, devices = fleet(bench, lambda plan: [*wrong(plan), good_report(plan, "bad")])
    with coordinator(bench, job, lambda: now[0]) as (made, ledger):
        drive(made, devices, now, lambda: False)
        shown = job_shown(ledger, "job")
    assert [ack.outcome for ack in bad.acks] == ["invalid", "invalid"]
    assert bad.acks[-1].reason.startswith("excluded from this job: 1 contributions in a row were rejected")
    assert list(shown["excluded"]) == ["bad"]
    assert [device["device"] for device in shown["device_list"]] == ["good"]


def test_job_show_says_who_stands_out(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    _, devices = fleet(bench, wrong)
    with coordinator(bench, EXCLUDES, lambda: now[0]) as (made, _ledger):
        drive(made, devices, now, lambda: False)
    assert main(["job", "show", "job", "--state-dir", str(bench.root)]) == 0
    text = capsys.readouterr().out
    assert "bad: 2 of its contributions were rejected" in text
    assert "bad is excluded from this job: 2 contributions in a row" in text
    assert main(["job", "show", "job", "--state-dir", str(bench.root), "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rejected"] == {"bad": 2}
    assert shown["against_the_others"] == {}


def test_a_job_whose_devices_are_all_wrong_fails_instead_of_trying_for_ever(bench: Bench) -> None:
    now = [0.0]
    job: Job = msgspec.structs.replace(JOB, max_attempts=3)
    with coordinator(bench, job, lambda: now[0]) as (made, ledger):
        with pytest.raises(JobError, match="fewer than 1 reports in 3 attempts"):
            drive(made, [ScriptedDevice(bench, "bad", wrong)], now, lambda: False)
        assert queries.closed_rounds(ledger, "job") == []


def test_what_a_device_says_itself_is_no_rejection(bench: Bench) -> None:
    now = [0.0]

    def refuses(plan: Any) -> list[Any]:
        return [
            PlanRefused(
                job="job", round=plan.round, attempt=plan.attempt, device="bad", code=9, message=rejection("I say so")
            )
        ]

    _, devices = fleet(bench, refuses)
    job = msgspec.structs.replace(EXCLUDES, rounds=2, robust=Robust(quarantine_after=1))
    with coordinator(bench, job, lambda: now[0]) as (made, ledger):
        drive(made, devices, now, lambda: False)
        shown = job_shown(ledger, "job")
    assert (shown["rejected"], shown["excluded"]) == ({}, {})


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["wrong", "taken", "own"]))), st.integers(1, 4))
def test_who_is_excluded_follows_from_the_longest_row(events: list[tuple[str, str]], after: int) -> None:
    offers = {
        "wrong": ("refused", rejection("x")),
        "taken": ("reported", rejection("x")),  # rejected at first, and right in the end
        "own": ("refused", own_refusal(rejection("x"))),
    }
    found = excluded([(device, *offers[event]) for device, event in events], after)
    for device in "ab":
        marks = "".join({"wrong": "w", "taken": "|", "own": ""}[event] for name, event in events if name == device)
        assert (device in found) == any(len(row) >= after for row in marks.split("|"))
        counted = rejections([(name, *offers[event]) for name, event in events])
        assert counted.get(device, 0) == marks.count("w")
    assert excluded([(device, *offers[event]) for device, event in events], None) == {}
