"""The dashboard behind Apache with mod_auth_openidc, as docs/ops/oidc has it, and a provider: real sign-ins."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from fleets import free_port
from identity import SECRET, apache, identity_provider, lacking
from operator_sites import ALICE, Site, confirm, form_of, site

from server.access.gate import Proxy
from server.storage.audit_queries import audit_of
from server.storage.device_queries import tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(lacking()), reason=f"needs Apache and an identity provider: {lacking()}"),
]
HEADER, PROXY = "X-Forwarded-Email", "127.0.0.2"
_HTML = {"accept": "text/html"}


@dataclass(frozen=True)
class Behind:
    """A server behind the proxy: where browsers reach it, its provider, and where the server itself listens."""

    public: str
    issuer: str
    server: Site

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.public, follow_redirects=True, timeout=60, headers=_HTML)

    def signed_in(self, name: str, password: str) -> tuple[httpx.Client, httpx.Response]:
        """Go to the dashboard, and fill in the provider's form."""
        browser = self.browser()
        form = browser.get("/ui/")
        assert "/interaction/" in str(form.url), form.text
        return browser, browser.post(form.url, data={"login": name, "password": password})


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("oidc")
    port, provider_port = free_port(), free_port()
    public = f"http://127.0.0.1:{port}"
    with (
        site(folder, ("reviews",), public=public, proxy=Proxy(PROXY, HEADER.lower())) as server,
        identity_provider(folder, provider_port, f"{public}/oidc-callback") as issuer,
        apache(
            folder,
            port,
            {
                "COVEY_ISSUER": issuer,
                "COVEY_CLIENT_ID": "covey",
                "COVEY_CLIENT_SECRET": SECRET,
                "COVEY_PASSPHRASE": "0123456789abcdef0123456789abcdef",
                "COVEY_PUBLIC": public,
                "COVEY_API": server.url,
                "COVEY_GROUP": "covey-operators",
            },
            PROXY,
        ),
    ):
        yield Behind(public, issuer, server)


def test_an_operator_signs_in_and_the_audit_has_the_name(behind: Behind) -> None:
    browser, page = behind.signed_in("alice", "wonderland")
    with closing(browser):
        assert (page.status_code, str(page.url)) == (200, f"{behind.public}/ui/")
        assert "<h1>Fleet default</h1>" in page.text
        browser.headers["origin"] = behind.public
        browser.follow_redirects = False
        assert confirm(browser, "tag", "pi-1", value="kitchen").status_code == 303
    assert tags_of(behind.server.ledger, "default") == {"pi-1": {"kitchen"}}
    entry = audit_of(behind.server.ledger)[0]
    assert (entry.actor, entry.way, entry.address, entry.action) == ("alice@example.com", "proxy", "127.0.0.1", "tag")


def test_a_name_that_the_browser_sends_is_not_believed_on_the_way_through_the_proxy(behind: Behind) -> None:
    browser, _ = behind.signed_in("alice", "wonderland")
    with closing(browser):
        browser.headers.update({HEADER: "mallory@example.com", "origin": behind.public})
        browser.follow_redirects = False
        assert confirm(browser, "resume", "reviews").status_code == 303
        assert audit_of(behind.server.ledger)[0].actor == "alice@example.com"
    with behind.browser() as stranger:
        told = stranger.get("/ui/jobs", headers={HEADER: "alice@example.com"})
        assert "/interaction/" in str(told.url)  # the provider asks who it is
        stranger.follow_redirects = False
        for headers in ({"accept": "*/*"}, {"accept": "*/*", HEADER: "alice@example.com"}):
            assert stranger.get("/api/v1/jobs", headers=headers).status_code == 401
        sent = stranger.post("/ui/do/stop", data={"target": "reviews"}, headers={HEADER: "alice@example.com"})
        assert sent.status_code == 302
        assert sent.headers["location"].startswith(f"{behind.issuer}/auth?")


def test_a_header_from_somebody_who_is_not_the_proxy_is_refused(behind: Behind) -> None:
    before = len(audit_of(behind.server.ledger))
    headers = {HEADER: "alice@example.com", "x-forwarded-for": PROXY, "origin": behind.public}
    with httpx.Client(base_url=behind.server.url, headers=headers) as forger:
        assert forger.get("/ui/").status_code == 303
        assert forger.get("/api/v1/jobs").status_code == 401
        page = forger.get("/ui/do/stop", params={"target": "reviews"})
        assert page.headers["location"].startswith("/ui/login")
        assert forger.put("/api/v1/devices/pi-1/tags/mine").status_code == 401
    with behind.server.signed_in(ALICE) as alice:  # a token still is one, without the proxy
        form = form_of(alice.get("/ui/do/tag", params={"target": "pi-1"}), "pi-1", value="mine")
        alice.headers[HEADER] = "mallory@example.com"
        assert alice.post("/ui/do/tag", data=form).status_code == 303
    newest = audit_of(behind.server.ledger)
    assert [entry.actor for entry in newest[: len(newest) - before]] == ["alice", "alice"]


def test_who_is_no_operator_of_the_provider_gets_nothing(behind: Behind) -> None:
    for name, password, status in (("bob", "builder", 401), ("alice", "guessed", 403), ("constructor", "", 403)):
        browser, page = behind.signed_in(name, password)
        with closing(browser):
            assert page.status_code in (status, 403)
            assert "Fleet" not in page.text
            assert "Fleet" not in browser.get("/ui/").text
