"""The dashboard's pages over a ledger that a simulated job has written, and over one with texts that look like HTML."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from server.dashboard.app import make_dashboard
from server.dashboard.templates import STATIC, render
from server.queue.feed import Feed
from server.simulation.presence import FLEET
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.fleet import PAGE_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HTML = "<b onclick=alert(1)>'\"&"


class Page(HTMLParser):
    """What a page has: tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


def client_of(
    ledger: Ledger,
    fleet: str,
    *,
    refused: Mapping[str, int] | None = None,
    rollouts: list[dict[str, Any]] | None = None,
    joins: list[dict[str, Any]] | None = None,
    lines: list[Any] | None = None,
) -> TestClient[Litestar]:
    operations: Any = SimpleNamespace(
        ledger=ledger,
        fleet=fleet,
        supervisor=SimpleNamespace(feed=Feed()),
        log_lines=lambda _name, _after: lines or [],
        rollouts=SimpleNamespace(list=lambda: rollouts or [], show=lambda number: (rollouts or [])[number - 1]),
        trust=SimpleNamespace(pending=lambda: joins or []),
    )
    return TestClient(Litestar(make_dashboard(operations, "/api/v1", lambda: refused or {}), logging_config=None))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder: Path = tmp_path_factory.mktemp("dashboard")
    simulate(SimulateOptions(devices=70, rounds=3, cohort=6, drop_out=0.0), state_dir=folder)
    return Ledger(folder / LEDGER_FILE, read_only=True)


@pytest.fixture
def client(ledger: Ledger) -> Iterator[TestClient[Litestar]]:
    with client_of(ledger, FLEET) as made:
        yield made


def page(client: TestClient[Litestar], path: str, status: int = 200) -> Page:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return Page(answer.text)


def test_a_browser_at_the_root_is_led_to_the_fleet(client: TestClient[Litestar]) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code // 100, answer.headers["location"]) == (3, "/ui/")


def test_the_fleet_is_paged_and_filtered_by_the_server(client: TestClient[Litestar], ledger: Ledger) -> None:
    def names(query: str) -> list[str]:
        return [href.rsplit("/", 1)[1] for href in page(client, f"/ui/{query}").all("href") if "/devices/" in href]

    def leads(query: str, rel: str) -> str:
        found = [attrs["href"] for _, attrs in page(client, f"/ui/{query}").tags if attrs.get("rel") == rel]
        return "".join(href.removeprefix("/ui/") for href in found if href)

    first = names("")
    following = leads("", "next")
    second = names(following)
    assert (len(first), len(second)) == (PAGE_ROWS, 70 - PAGE_ROWS)
    assert len(set(first + second)) == 70
    assert (leads("", "prev"), leads(following, "next")) == ("", "")
    assert names(leads(following, "prev")) == first
    assert names("?after=zzzz") == []
    assert names(f"?q={first[3].upper()}") == [first[3]]
    assert names("?q=100%25") == []  # a percent sign is no wildcard
    assert len(names("?state=lost")) == 0
    assert names("?tag=nothing") == []
    shown = page(client, "/ui/")
    board = next(href for href in shown.all("href") if "board=" in href)
    assert 0 < len(names(board.removeprefix("/ui/"))) < 70


def test_a_page_reads_only_its_own_rows(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    kind = type(ledger.database)
    original = kind.rows

    def counted(file: Any, query: Any) -> Any:
        rows = original(file, query)
        asked.append(len(rows))
        return rows

    monkeypatch.setattr(kind, "rows", counted)
    with client_of(ledger, FLEET) as client:
        page(client, "/ui/")
    assert len(asked) <= 10
    assert max(asked) <= PAGE_ROWS + 1  # one more says whether there is a next page


def test_a_job_has_its_figures_as_tables_and_as_data(client: TestClient[Litestar], ledger: Ledger) -> None:
    shown = page(client, f"/ui/jobs/{JOB_NAME}")
    charts = {json.loads(text)["unit"]: json.loads(text) for text in shown.all("data-chart")}
    assert set(charts) == {"nats", "share of rows", "passes, all devices", "bytes, all devices", "seconds"}
    assert charts["nats"]["rounds"] == [0, 1, 2, 3]
    assert charts["seconds"]["rounds"] == [1, 2, 3]
    assert sum(tag == "details" for tag, _ in shown.tags) == len(charts)
    loss = charts["nats"]["lines"]["held-out, after the round"][-1]
    assert f"{loss:.4g}" in shown.text
    assert shown.all("data-events") == []  # it has ended
    assert len(shown.all("data-live")) == len(set(shown.all("id")) & set(_live_ids(shown)))


def _live_ids(shown: Page) -> list[str]:
    return [str(attrs["id"]) for _, attrs in shown.tags if "data-live" in attrs]


def test_the_bandits_page_counts_every_choice(client: TestClient[Litestar]) -> None:
    shown = page(client, f"/ui/jobs/{JOB_NAME}/bandit")
    (chart,) = [json.loads(text) for text in shown.all("data-chart")]
    by_round = [sum(line[at] for line in chart["lines"].values()) for at in range(3)]
    assert by_round == [8, 8, 8]  # 6 and a fifth more
    assert "expected time" in shown.text


def test_a_device_shows_its_rounds_its_profile_and_what_it_said(ledger: Ledger) -> None:
    with client_of(ledger, FLEET) as client:
        job = page(client, f"/ui/jobs/{JOB_NAME}")
        name = next(href for href in job.all("href") if "/devices/" in href).rsplit("/", 1)[1]
    line = SimpleNamespace(line=SimpleNamespace(level="WARNING", text="too hot"))
    with client_of(ledger, FLEET, refused={f"{name}: expired": 3, "other: expired": 9}, lines=[line]) as client:
        shown = page(client, f"/ui/devices/{name}")
    assert "reported" in shown.text
    assert "expired: 3" in shown.text
    assert "expired: 9" not in shown.text
    assert "WARNING too hot" in shown.text
    assert any(tag == "rect" for tag, _ in shown.tags)  # the profile


def test_rollouts_and_enrolment_are_shown(ledger: Ledger) -> None:
    rollout = {
        "rollout": 1, "kind": "wheel", "sha256": "ab" * 32, "source": HTML, "state": "running", "reason": "",
        "group": 1, "groups": 2, "devices": 2, "switched": 1, "failed": 0, "created_at": "2026-01-01 00:00:00",
        "ended_at": None,
        "group_list": [{"group": 1, "devices": [{"device": "pi", "state": "switched", "reason": HTML}]}],
    }  # fmt: skip
    join = {"fleet": FLEET, "device": "new-pi", "address": "10.0.0.9", "asked_at": None, "key_sha256": "cd" * 32}
    with client_of(ledger, FLEET, rollouts=[rollout], joins=[{**join, "host": HTML}]) as client:
        assert HTML in page(client, "/ui/rollouts").text
        assert HTML in page(client, "/ui/rollouts/1").text
        waiting = page(client, "/ui/joins")
        assert HTML in waiting.text
        assert [href for href in waiting.all("href") if "/do/" in href] == [
            "/ui/do/approve?target=new-pi",
            "/ui/do/reject?target=new-pi",
        ]
        page(client, "/ui/audit")


def test_nothing_that_a_device_or_an_operator_wrote_is_taken_for_html(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)
    birth = {"tags": [HTML], "covey_version": HTML, "machine": HTML, "runtimes": {HTML: HTML}, "hostname": HTML}
    ledger.device_born("home", "pi", json.dumps(birth))
    ledger.device_reason("home", "pi", HTML)
    ledger.submit_job("job", "home", "ab" * 32, "/bundle", {"rounds": 1}, priority=0, after=None)
    ledger.job_is("job", "failed", HTML)
    line = SimpleNamespace(line=SimpleNamespace(level="INFO", text=HTML))
    with client_of(ledger, "home", lines=[line]) as client:
        for path in ("/ui/", "/ui/devices/pi", "/ui/jobs", "/ui/jobs/job", f"/ui/?q={'%3Cb%20onclick=1%3E'}"):
            shown = page(client, path)
            assert "b" not in {tag for tag, _ in shown.tags}, path
            assert path.startswith("/ui/?") or HTML in shown.text
        found = [href for href in page(client, "/ui/").all("href") if "tag=" in href]
        assert "pi" in page(client, found[0]).text  # the tag leads to its devices


def test_what_is_not_there_is_a_page_that_says_so(client: TestClient[Litestar]) -> None:
    assert "no job nothing" in page(client, "/ui/jobs/nothing", 404).text
    assert "no job nothing" in page(client, "/ui/jobs/nothing/bandit", 404).text
    assert "no device nothing" in page(client, "/ui/devices/nothing", 404).text
    page(client, "/ui/?standing=upright", 400)
    page(client, f"/ui/?after={'x' * 201}", 400)


def test_pages_have_no_script_of_their_own_and_load_nothing_from_elsewhere(
    client: TestClient[Litestar],
) -> None:
    for path in ("/ui/", "/ui/jobs", f"/ui/jobs/{JOB_NAME}", f"/ui/jobs/{JOB_NAME}/bandit", "/ui/audit"):
        html = client.get(path).text
        shown = Page(html)
        assert shown.all("style") == []
        assert not [name for _, attrs in shown.tags for name in attrs if name.startswith("on")]
        assert not re.search(r"<script(?![^>]* src=)", html)
        loaded = [attrs.get("src") or attrs.get("href") for tag, attrs in shown.tags if tag in ("script", "link")]
        assert loaded
        for source in loaded:
            assert source is not None
            assert source.startswith("/ui/static/")
            assert client.get(source).status_code == 200


def test_what_is_vendored_is_what_its_note_says() -> None:
    note = json.loads((STATIC / "vendored.json").read_text())
    assert note
    for name, entry in note.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == entry["sha256"]
        assert (STATIC / entry["licence_file"]).read_text().startswith("The MIT License")
        assert entry["version"] == "1.6.32"


def test_a_template_that_is_not_given_its_values_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("error.html.jinja", {"here": ""})
