"""Pages that ask before they change something: what they say, what they do, and two operators at once."""

from __future__ import annotations

import html
import re
import threading
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_sites import ALICE, BOB, Site, confirm, form_of, form_token, site
from repository import ROOT

from server.api.actions import ACTIONS
from server.dashboard import job_pages
from server.storage import queries
from server.storage.audit_queries import audit_of
from server.storage.device_queries import tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOBS = ("reviews", "mails")
NASTY = st.one_of(
    st.sampled_from(
        ["<script>alert(1)</script>", "\"'><img src=x onerror=y>", "{{ 7*7 }}", "\x00\x1b[2J", "a" * 20_000]
    ),
    st.text(max_size=200),
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, JOBS) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("shared"), JOBS) as found:
        yield found


def state_of(served: Site, job: str) -> str:
    record = queries.find_job(served.ledger, job)
    assert record is not None
    return record.state


@pytest.mark.parametrize("name", list(ACTIONS))
def test_each_action_says_what_will_happen_and_does_nothing_yet(shared: Site, name: str) -> None:
    before = audit_of(shared.ledger)
    with shared.command() as browser:
        target = "1" if name.startswith("rollout") else "reviews"
        page = browser.get(f"{shared.url}/ui/do/{name}", params={"target": target})
    assert page.status_code == 200
    text = html.unescape(page.text)
    for words in (ACTIONS[name].title.format(target), ACTIONS[name].effect, ACTIONS[name].button):
        assert words in text
    assert '<form method="post"' in page.text
    assert audit_of(shared.ledger) == before


def test_a_job_is_started_paused_stopped_and_deleted(served: Site) -> None:
    with served.signed_in() as alice:
        for action, state in (("resume", "queued"), ("pause", "paused"), ("stop", "stopped")):
            answer = confirm(alice, action, "reviews")
            assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs/reviews")
            assert state_of(served, "reviews") == state
        answer = confirm(alice, "delete", "reviews")
        assert answer.headers["location"] == "/ui/jobs"
        assert queries.find_job(served.ledger, "reviews") is None


def test_a_device_is_tagged_and_untagged_and_what_cannot_be_is_told(served: Site) -> None:
    with served.signed_in() as alice:
        assert confirm(alice, "tag", "pi-1", value="kitchen").status_code == 303
        assert tags_of(served.ledger, "default") == {"pi-1": {"kitchen"}}
        assert confirm(alice, "untag", "pi-1", value="kitchen").status_code == 303
        assert tags_of(served.ledger, "default") == {}
        for action in ("approve", "reject", "revoke", "release", "forget", "untag", "rename"):
            answer = confirm(alice, action, "pi-1", value="kitchen")
            assert answer.status_code == 409
            assert "pi-1" in answer.text
        assert confirm(alice, "rollout-abort", "7").status_code == 409
        assert confirm(alice, "stop", "none").status_code == 404
        assert confirm(alice, "tag", "pi-1", value="").status_code == 422


def test_the_second_of_two_operators_is_told_what_the_first_did(served: Site) -> None:
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        page = bob.get("/ui/do/resume", params={"target": "reviews"})
        assert confirm(alice, "stop", "reviews").status_code == 303
        told = bob.post("/ui/do/resume", data=form_of(page, "reviews"))
        assert told.status_code == 409
        assert "stop by alice" in told.text
        assert state_of(served, "reviews") == "stopped"  # bob has not undone what he did not know of
        again = bob.post("/ui/do/resume", data=form_of(told, "reviews"))  # and can, now that he knows
        assert again.status_code == 303
        assert state_of(served, "reviews") == "queued"


def test_what_was_written_is_not_lost_when_it_is_refused(served: Site) -> None:
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        page = bob.get("/ui/do/tag", params={"target": "pi-1"})
        confirm(alice, "tag", "pi-1", value="kitchen")
        told = bob.post("/ui/do/tag", data=form_of(page, "pi-1", value="my-own-tag"))
        assert told.status_code == 409
        assert 'value="my-own-tag"' in told.text
        assert bob.post("/ui/do/tag", data=form_of(told, "pi-1", value="my-own-tag")).status_code == 303
    assert tags_of(served.ledger, "default") == {"pi-1": {"kitchen", "my-own-tag"}}


def test_of_operators_who_confirm_at_the_same_moment_one_is_first(served: Site) -> None:
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        for _ in range(5):
            forms = []
            for browser, action in ((alice, "resume"), (bob, "stop")):
                page = browser.get(f"/ui/do/{action}", params={"target": "mails"})
                forms.append((browser, action, form_of(page, "mails")))
            statuses: list[int] = []
            start = threading.Barrier(2)

            def send(browser: httpx.Client, action: str, form: dict[str, str]) -> None:
                start.wait(60)  # noqa: B023
                statuses.append(browser.post(f"/ui/do/{action}", data=form).status_code)  # noqa: B023

            threads = [threading.Thread(target=send, args=form) for form in forms]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(statuses) == [303, 409]
            served.clock.now_s += 60
            reset = confirm(alice, "resume" if state_of(served, "mails") == "stopped" else "pause", "mails")
            assert reset.status_code == 303
            if state_of(served, "mails") == "queued":
                confirm(alice, "pause", "mails")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(st.sampled_from(sorted(ACTIONS)), NASTY),
    target=st.one_of(st.just("reviews-not-there"), NASTY),
    value=NASTY,
    extra=st.dictionaries(st.text(max_size=10), NASTY, max_size=3),
)
def test_no_input_is_a_fault_or_comes_back_unescaped(
    shared: Site, name: str, target: str, value: str, extra: dict[str, str]
) -> None:
    shared.clock.now_s += 60
    with shared.signed_in() as browser:
        token = form_token(browser.get("/ui/do/stop", params={"target": "reviews"}))
        path = f"/ui/do/{httpx.QueryParams({'n': name})}".replace("n=", "").replace("+", "%20")
        fields = {**extra, "form_token": token, "target": target, "value": value, "seen": "0"}
        answers = [
            browser.get(path, params={"target": target, "value": value}),
            browser.post(path, data=fields),
            browser.post("/ui/login", data=fields),
            browser.get("/ui/login", params={"next": target}),
            browser.post("/ui/logout", data={**fields, "form_token": value}),
        ]
    for answer in answers:
        assert answer.status_code in (200, 303, 400, 403, 404, 405, 409, 414, 422, 429), (
            answer.status_code,
            answer.text,
        )
        for text in (name, target, value):
            if "<" in text and len(text) > 2:
                assert text not in answer.text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"a" * 100_000),
        ("application/x-www-form-urlencoded", b"&".join(b"a=b" for _ in range(1000))),
        ("application/x-www-form-urlencoded", b"target=%ff%fe&value=\xff"),
        ("multipart/form-data; boundary=x", b"--x\r\n"),
        ("application/json", b"{}"),
        ("", b""),
    ],
)
def test_a_body_that_is_no_form_is_refused(shared: Site, kind: str, body: bytes) -> None:
    with shared.signed_in() as browser:
        for path in ("/ui/do/stop", "/ui/login", "/ui/logout"):
            answer = browser.post(path, content=body, headers={"content-type": kind})
            assert answer.status_code in (403, 422)


def test_every_link_of_the_pages_leads_to_an_action() -> None:
    folder = ROOT / "server" / "dashboard"
    texts = [path.read_text() for path in sorted((folder / "templates").glob("*.jinja"))]
    named = {name for text in texts for name in re.findall(r"""action\("([a-z-]+)",""", text)}
    named |= {name for links in job_pages._ACTIONS.values() for name in links}
    assert {"tag", "revoke", "approve", "rollout-abort", "pause", "stop"} <= named
    assert named <= set(ACTIONS)
