"""Who may use API and pages over TCP: tokens, sessions, a trusted proxy; and how often a token may be guessed."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

import pytest
from operator_sites import ALICE, BOB, Site, form_token, sign_in, site

from edge_runtime.errors import ConfigError
from server.access.gate import Proxy
from server.access.operators import OneToken, OperatorFile, digest_of
from server.access.sessions import IDLE_S, LONGEST_S, MOST, Sessions
from server.api.sign_in_routes import own_path
from server.cli import main
from server.storage.audit_queries import audit_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READS = ("/ui/", "/ui/jobs", "/ui/audit", "/ui/do/stop?target=reviews")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, ("reviews",)) as found:
        yield found


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/audit", "/metrics", "/api/v1/schema/openapi.json", "/none"])
def test_programs_need_a_token_also_for_what_is_not_there(served: Site, path: str) -> None:
    with served.browser() as stranger:
        answer = stranger.get(path)
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]
        known = stranger.get(path, headers={"authorization": f"Bearer {BOB}"})
        assert known.status_code == (404 if path == "/none" else 200)


@pytest.mark.parametrize("path", READS)
def test_a_browser_without_a_session_is_led_to_the_sign_in_and_back(served: Site, path: str) -> None:
    with served.browser() as browser:
        lost = browser.get(path)
        assert lost.status_code == 303
        assert lost.headers["location"].startswith("/ui/login?next=")
        page = browser.get(lost.headers["location"])
        fields = {"token": BOB, "form_token": form_token(page), "next": path}
        answer = browser.post("/ui/login", data=fields)
        assert (answer.status_code, answer.headers["location"]) == (303, path)
        assert browser.get(path).status_code == 200
        assert browser.get("/api/v1/jobs").status_code == 200
    (entry,) = audit_of(served.ledger)
    assert (entry.actor, entry.action, entry.way, entry.address) == ("bob", "sign in", "browser", "127.0.0.1")


def test_the_cookie_is_kept_from_scripts_and_from_other_sites(tmp_path: Path) -> None:
    for public, name, has_secure in (
        (None, "covey_session", False),
        ("https://c.example", "__Host-covey_session", True),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with site(folder, public=public) as served, served.browser() as browser:
            page = browser.get("/ui/login")
            nonce = page.headers["set-cookie"].split(";")[0]  # as a browser sends it over HTTPS
            fields = {"token": ALICE, "form_token": form_token(page)}
            (cookie,) = browser.post("/ui/login", data=fields, headers={"cookie": nonce}).headers.get_list("set-cookie")
            assert cookie.startswith(f"{name}=")
            words = {word.strip().lower() for word in cookie.split(";")}
            assert {"httponly", "samesite=strict", "path=/"} <= words
            assert ("secure" in words) == has_secure
            assert ("strict-transport-security" in browser.get("/ui/login").headers) == has_secure


def test_a_wrong_token_begins_no_session_and_is_slowed_down(served: Site) -> None:
    with served.browser() as browser:
        answers = [sign_in(browser, "x" * 32) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [401, 401, 429]
        assert int(answers[2].headers["retry-after"]) >= 1
        assert sign_in(browser, ALICE).status_code == 429  # also the right one, from this address
        assert browser.get("/api/v1/jobs", headers={"authorization": "Bearer " + "y" * 32}).status_code == 429
        served.clock.now_s += 60
        assert sign_in(browser, ALICE).status_code == 303
    assert [entry.action for entry in audit_of(served.ledger)] == ["sign in"]


def test_sign_out_and_time_end_a_session(served: Site) -> None:
    with served.signed_in() as browser, served.signed_in() as other:
        page = browser.get("/ui/logout")
        secret = browser.cookies["covey_session"]
        assert browser.post("/ui/logout", data={"form_token": form_token(page)}).status_code == 303
        assert browser.get("/ui/jobs", cookies={"covey_session": secret}).status_code == 303
        assert other.get("/ui/jobs").status_code == 200
        served.clock.now_s += IDLE_S + 1
        assert other.get("/ui/jobs").status_code == 303


def test_a_session_ends_with_its_longest_time_and_the_oldest_for_another() -> None:
    operators, now = OneToken(ALICE), [0.0]
    sessions = Sessions(operators, lambda: now[0])
    secret = sessions.begin("api-token", digest_of(ALICE))
    while now[0] < LONGEST_S:
        assert sessions.operator_of(secret) == "api-token"
        now[0] += IDLE_S / 2
    now[0] += 1
    assert sessions.operator_of(secret) is None
    first = sessions.begin("api-token", digest_of(ALICE))
    for _ in range(MOST):
        last = sessions.begin("api-token", digest_of(ALICE))
    assert len(sessions) == MOST
    assert (sessions.operator_of(first), sessions.operator_of(last)) == (None, "api-token")


def test_who_is_taken_out_of_the_file_is_out_at_once(served: Site) -> None:
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        served.operators.write_text(f"bob {BOB}\nalice another-token-of-alice-0123\n")
        assert alice.get("/ui/jobs").status_code == 303
        assert bob.get("/ui/jobs").status_code == 200
        served.operators.write_text("bob\n")  # damaged: nobody is let in by what was there before
        answer = bob.get("/api/v1/jobs")
        assert answer.status_code == 500
        assert "line 1" in answer.json()["error"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no operator"),
        ("alice\n", "1 words"),
        ("alice short\n", "shorter than 16"),
        (f"a/b {ALICE}\n", "can be no operator"),
        (f"local {ALICE}\n", "can be no operator"),
        (f"alice {ALICE}\nalice {BOB}\n", "twice"),
        (f"alice {ALICE}\nbob {ALICE}\n", "twice"),
    ],
)
def test_a_file_of_operators_that_cannot_be_used_is_refused_by_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "operators"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=what) as caught:
        OperatorFile(path)
    assert ALICE not in str(caught.value)
    path.write_text(f"alice {ALICE}\n")
    assert OperatorFile(path).name_of(ALICE) == "alice"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="other users"):
        OperatorFile(path)


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example/ui/",
        "/\\evil.example",
        "/ui//evil",
        "/ui/login?next=/ui/",
        "/api/v1/jobs",
        "/ui/\r\nset-cookie: x=y",
        "javascript:alert(1)",
        "/ui/" + "a" * 3000,
        "http://[",
        "",
        "/ui/ä",
    ],
)
def test_a_sign_in_leads_to_no_other_place(path: str) -> None:
    assert own_path(path) == "/ui/"


def test_only_the_named_proxy_is_believed_who_has_signed_in(tmp_path: Path) -> None:
    header = {"x-forwarded-email": "carol@example.org", "x-forwarded-for": "203.0.113.9, 192.0.2.1"}
    (tmp_path / "here").mkdir()
    with site(tmp_path / "here", proxy=Proxy("127.0.0.1", "x-forwarded-email")) as served:
        with served.browser(**header) as browser:
            assert browser.get("/ui/jobs").status_code == 200
            form = form_token(browser.get("/ui/do/tag", params={"target": "pi-1"}))
            # what the proxy adds by itself is no proof that the request is from Covey's page
            assert browser.put("/api/v1/devices/pi-1/tags/kitchen").status_code == 403
            answer = browser.put("/api/v1/devices/pi-1/tags/kitchen", headers={"x-covey-form-token": form})
            assert answer.status_code == 200
        (entry,) = audit_of(served.ledger)
        assert (entry.actor, entry.way, entry.address) == ("carol@example.org", "proxy", "192.0.2.1")
        with served.browser() as nobody:
            assert nobody.get("/api/v1/jobs").status_code == 401
        twice = [("x-forwarded-email", "carol"), ("x-forwarded-email", "alice")]
        with served.browser() as forger:
            assert forger.get("/api/v1/jobs", headers=twice).status_code == 401
    (tmp_path / "there").mkdir()
    elsewhere = Proxy("192.0.2.99", "x-forwarded-email")
    with site(tmp_path / "there", proxy=elsewhere) as served, served.browser(**header) as browser:
        assert browser.get("/api/v1/jobs").status_code == 401
    (tmp_path / "none").mkdir()
    with site(tmp_path / "none") as served, served.browser(**header) as browser:
        assert browser.get("/api/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    "words",
    [
        ["--operator-header", "X-Email"],
        ["--operator-proxy", "192.0.2.1"],
        ["--operator-proxy", "192.0.2.1", "--operator-header", "Cookie"],
        ["--operator-header", "X-Email", "--operator-proxy", "proxy.example"],
        ["--api-url", "https://covey.example/below"],
    ],
)
def test_options_that_would_trust_too_much_are_refused(tmp_path: Path, words: list[str]) -> None:
    with redirect_stderr(io.StringIO()) as said:
        assert main(["serve", "--state-dir", str(tmp_path), *words]) == ConfigError.exit_code
    assert words[-2] in said.getvalue()
