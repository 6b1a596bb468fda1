"""Progress: what a person sees during a job."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from server import events
from server.job.job import Job
from server.views.progress import Progress, watch

JOB = Job(name="reviews", eval_file="x", rounds=3)
HISTORY: list[events.Event] = [
    events.Waiting(online=1, needed=2),
    events.DeviceChanged(device="a", state="online"),
    events.DeviceChanged(device="b", state="busy"),
    events.Evaluated(round=None, loss=0.7, accuracy=0.5),
    events.RoundOpened(round=0, attempt=0, devices=["a", "b"]),
    events.ReportTaken(round=0, device="a", loss=0.6, seconds=2.0, bytes_up=300),
    events.ReportTaken(round=0, device="b", loss=0.8, seconds=3.5, bytes_up=310),
    events.RoundClosed(round=0, reports=2, adapter_sha256="ab" * 32),
    events.Evaluated(round=0, loss=0.65, accuracy=0.61),
    events.RoundOpened(round=1, attempt=0, devices=["a", "b"]),
    events.OfferFailed(round=1, device="b", reason="lost"),
    events.RoundAbandoned(round=1, attempt=0, reports=0),
    events.DeviceChanged(device="b", state="lost"),
    events.Syncing(proved=1, devices=1),
]


def test_the_table_shows_rounds_and_devices() -> None:
    progress = Progress(JOB.name, JOB.rounds)
    for event in HISTORY:
        progress.take(event)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(progress.table())
    text = console.export_text()
    for part in (
        "reviews",
        "2/2",
        "3.5 s",
        "610",
        "0.7000",
        "0.6500",
        "0.610",
        "abababab",
        "again",
        "1 devices online",
    ):
        assert part in text


def test_lines_are_written_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(JOB.name, JOB.rounds, "text") as observe:
        for event in HISTORY:
            observe(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert "waits for devices: 1 of 2 are ready" in err
    assert "round 1: no report from b: lost" in err
    assert "start: held-out loss 0.7000, accuracy 0.500" in err


def test_a_devices_words_neither_act_on_the_terminal_nor_are_taken_for_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with watch(JOB.name, JOB.rounds, "text") as observe:
        observe(events.OfferFailed(round=0, device="b", reason="\x1b[2J\x9b2J[red]wait[/red] [/"))
    assert "\\x1b[2J\\x9b2J[red]wait[/red] [/" in capsys.readouterr().err


def test_json_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(JOB.name, JOB.rounds, "json") as observe:
        for event in HISTORY:
            observe(event)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(HISTORY)
    assert lines[5] == {"event": "report", "round": 0, "device": "a", "loss": 0.6, "seconds": 2.0, "bytes_up": 300}
