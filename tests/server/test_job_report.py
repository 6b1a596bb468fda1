"""``covey job report``: a page of one job that needs nothing beside it, made of a real ledger."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from server.cli import main
from server.report.page import page_of
from server.report.plots import MOST_LINES, plots_of
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.history import job_history

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
_VOID = {"meta", "br", "hr"}


class Reader(HTMLParser):
    """Reads a page: its texts, its addresses, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a job with the bandit, more devices than get a line each."""
    folder = tmp_path_factory.mktemp("report")
    options = SimulateOptions(devices=MOST_LINES + 4, rounds=4, cohort=8, drop_out=0.1)
    simulate(options, state_dir=folder)
    return folder


@pytest.fixture(scope="module")
def history(state_dir: Path) -> dict[str, Any]:
    return job_history(Ledger(state_dir / LEDGER_FILE, read_only=True), JOB_NAME)


def test_the_command_writes_a_page_that_loads_nothing(
    state_dir: Path, tmp_path: Path, history: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "page.html"
    words = ["job", "report", JOB_NAME, "--state-dir", str(state_dir), "--out", str(path), "--format", "json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"job": JOB_NAME, "path": str(path), "size_bytes": path.stat().st_size}
    page = path.read_text()
    found = Reader(page)
    assert all(address.startswith("#") for address in found.addresses)
    assert not re.search(r"url\((?!#)|@import|<script", page)
    assert page.count("<svg") == 5
    text = " ".join(found.texts)
    for words_of in ("Held-out accuracy", "Chosen arms, by round", f"{history['reports']} reports"):
        assert words_of in text
    assert all(device["device"] in text for device in history["device_list"])


def test_the_same_history_is_the_same_page(history: dict[str, Any]) -> None:
    assert page_of(history, NOW) == page_of(history, NOW)


def test_few_devices_have_a_line_each(history: dict[str, Any]) -> None:
    few = {device["device"] for device in history["device_list"][:3]}
    small = {**history, "offer_list": [offer for offer in history["offer_list"] if offer["device"] in few]}
    picture = plots_of(small)["Seconds of local steps, by device"]
    assert all(f">{name}<" in picture for name in few)
    assert "fastest to slowest" in plots_of(history)["Seconds of local steps, by device"]


def test_what_a_job_quotes_is_text_and_no_markup(history: dict[str, Any]) -> None:
    bad = '<script>alert("x")</script> & $\\frac{$'
    changed = {
        **history,
        "reason": bad,
        "against_the_others": {bad: bad},
        "device_list": [{**history["device_list"][0], "device": bad}],
        "offer_list": [{**offer, "device": bad} for offer in history["offer_list"]],
    }
    page = page_of(changed, NOW)
    assert "<script" not in page
    assert bad in " ".join(Reader(page).texts)


def test_a_job_without_rounds_has_a_page_without_plots(history: dict[str, Any]) -> None:
    begun = {**history, "rounds": 0, "round_list": [], "offer_list": [], "arm_list": [], "device_list": []}
    begun |= {"loss_start": None, "loss_end": None, "accuracy_start": None, "accuracy_end": None}
    page = page_of(begun, NOW)
    assert "<svg" not in page
    assert "after 0 of" in page
    assert Reader(page).texts


def test_an_unknown_job_and_a_folder_that_cannot_be_written(
    state_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--state-dir", str(state_dir)]
    assert main(["job", "report", "nobody", *where]) == 11
    (tmp_path / "file").write_text("x")
    assert main(["job", "report", JOB_NAME, *where, "--out", str(tmp_path / "file" / "page.html")]) == 8
    assert "file" in capsys.readouterr().err
