"""What a page of another site, or a form that is not one's own, can do: nothing; and the headers of every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from operator_sites import ALICE, BOB, Site, form_of, form_token, site

from server.access.headers import is_own_origin
from server.storage.audit_queries import audit_of
from server.storage.device_queries import tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAG = "/api/v1/devices/pi-1/tags/kitchen"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, ("reviews",)) as found:
        yield found


def unchanged(served: Site) -> bool:
    actions = {entry.action for entry in audit_of(served.ledger)}
    return actions <= {"sign in"} and tags_of(served.ledger, "default") == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://["},
    ],
)
def test_a_page_of_another_site_can_change_nothing(served: Site, headers: dict[str, str]) -> None:
    with served.signed_in() as browser:
        page = browser.get("/ui/do/tag", params={"target": "pi-1"})
        fields = form_of(page, "pi-1", value="kitchen")
        assert browser.post("/ui/do/tag", data=fields, headers=headers).status_code == 403
        assert browser.put(TAG, headers={**headers, "x-covey-form-token": form_token(page)}).status_code == 403
        assert browser.post("/ui/login", data=fields, headers=headers).status_code == 403
    with served.command() as command:
        assert command.put("/devices/pi-1/tags/kitchen", headers=headers).status_code == 403
    assert unchanged(served)


def test_a_form_without_its_token_or_with_that_of_another_session_changes_nothing(served: Site) -> None:
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        page = alice.get("/ui/do/tag", params={"target": "pi-1"})
        own = form_of(page, "pi-1", value="kitchen")
        others = form_token(bob.get("/ui/do/tag", params={"target": "pi-1"}))
        for token in ("", "0" * 64, others, "ä"):
            assert alice.post("/ui/do/tag", data={**own, "form_token": token}).status_code == 403
            assert alice.post("/ui/logout", data={"form_token": token}).status_code == 403
        assert alice.post("/ui/do/tag", data={**own, "seen": "x"}).status_code == 403
        assert alice.put(TAG).status_code == 403  # the cookie alone
        assert unchanged(served)
        assert alice.put(TAG, headers={"x-covey-form-token": own["form_token"]}).status_code == 200
        assert alice.post("/ui/do/tag", data={**own, "value": "attic", "seen": "9" * 15}).status_code == 303
    assert tags_of(served.ledger, "default") == {"pi-1": {"kitchen", "attic"}}


def test_a_sign_in_needs_the_page_that_it_was_made_for(served: Site) -> None:
    with served.browser() as browser, served.browser() as other:
        token = form_token(other.get("/ui/login"))
        browser.get("/ui/login")
        answer = browser.post("/ui/login", data={"token": ALICE, "form_token": token})
        assert answer.status_code == 403
        assert browser.get("/ui/jobs").status_code == 303


def test_the_sockets_side_takes_no_name_from_the_internet_and_no_foreign_page(tmp_path: Path) -> None:
    """A tunnel to the socket makes it a port of the operator's own machine, without a token."""
    with site(tmp_path, local=True) as served, served.browser() as browser:
        assert browser.get("/ui/jobs").status_code == 200
        assert browser.get("/ui/jobs", headers={"host": "rebound.example"}).status_code == 403
        assert browser.put(TAG, headers={"origin": "https://evil.example"}).status_code == 403
        page = browser.get("/ui/do/tag", params={"target": "pi-1"})
        fields = form_of(page, "pi-1", value="kitchen")
        assert browser.post("/ui/do/tag", data={**fields, "form_token": "0" * 64}).status_code == 403
        assert unchanged(served)
        assert browser.post("/ui/do/tag", data=fields).status_code == 303
        (entry,) = audit_of(served.ledger)
        assert (entry.actor, entry.way, entry.address) == ("local", "socket", None)


@pytest.mark.parametrize(
    ("headers", "public", "expected"),
    [
        ({}, None, True),
        ({"origin": "http://covey:8090", "host": "covey:8090"}, None, True),
        ({"origin": "https://covey.example", "host": "10.0.0.2:8090"}, "https://covey.example", True),
        ({"origin": "http://covey.example", "host": "10.0.0.2:8090"}, "https://covey.example", False),
        ({"origin": "https://covey.example", "host": "10.0.0.2:8090"}, None, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://a", "host": "a"}, None, True),
    ],
)
def test_an_origin_is_compared_with_the_host_or_the_public_address(
    headers: dict[str, str], public: str | None, *, expected: bool
) -> None:
    assert is_own_origin(headers, public) is expected


@pytest.mark.parametrize("path", ["/ui/login", "/ui/jobs", "/ui/access.css", "/api/v1/jobs", "/none", "/ui/none"])
def test_every_answer_has_the_headers_that_protect_it(served: Site, path: str) -> None:
    with served.signed_in() as browser, served.browser() as stranger:
        for answer in (browser.get(path), stranger.get(path)):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "cache-control" in answer.headers


def test_pages_have_nothing_inline_that_the_policy_would_stop(served: Site) -> None:
    with served.signed_in() as browser:
        for path in ("/ui/login", "/ui/logout", "/ui/do/stop?target=reviews", "/ui/do/none?target=x", "/ui/jobs"):
            text = browser.get(path).text
            assert "<style" not in text
            assert " style=" not in text
            assert " onclick=" not in text
            assert "<script>" not in text


def test_an_operator_changes_so_much_at_once_and_then_waits(served: Site) -> None:
    with served.command(ALICE) as alice, served.command(BOB) as bob:
        statuses = [alice.put(f"/devices/pi-1/tags/t{number}").status_code for number in range(61)]
        assert statuses == [200] * 60 + [429]
        refused = alice.put("/devices/pi-1/tags/t")
        assert refused.headers["retry-after"] == "1"
        assert alice.get("/jobs").status_code == 200
        assert bob.put("/devices/pi-1/tags/bobs").status_code == 200
        served.clock.now_s += 1
        assert alice.put("/devices/pi-1/tags/t").status_code == 200
