"""Forms that begin something: a rollout, join tokens, a job; what they check, say and do, and two operators at once."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_sites import ALICE, BOB, Site, confirm, form_token, site
from releasing import new_trust
from repository import ROOT
from tiny_models import reviews, write_rows

from edge_runtime.errors import ConfigError
from edge_runtime.trust.token import decode_token
from server.api.order_routes import ORDERS
from server.queue.job_text import at_line, job_table
from server.storage import queries, trust_queries
from server.storage.audit_queries import audit_of
from server.storage.blobs import BlobStore
from server.storage.records import ClosedRound, RoundFigures
from server.storage.trust_records import CertificateRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

FLEET = "default"
_INPUT = re.compile(r"<(input|textarea|select)[^>]*?name=\"([a-z_]+)\"[^>]*>")
_HIDDEN = re.compile(r'<input type="hidden" name="([a-z_]+)" value="([^"]*)">')
HTML = "<b onclick=alert(1)>'\"&"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    new_trust(tmp_path / "state")
    with site(tmp_path) as found:
        for name in ("pi-1", "pi-2", "pi-3", "pi-4"):
            found.ledger.device_state(FLEET, name, "online")
        yield found


@pytest.fixture
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2, 3), levels=(1, 2, 3))


def sent(browser: httpx.Client, name: str, **fields: str) -> httpx.Response:
    """Fill the form in, and ask what will happen."""
    page = browser.get(f"/ui/new/{name}")
    assert page.status_code == 200, page.text
    return browser.post(f"/ui/new/{name}", data={"form_token": form_token(page), "step": "check", **fields})


def pressed(browser: httpx.Client, name: str, page: httpx.Response, step: str = "confirm") -> httpx.Response:
    """Press a button of the page that asks."""
    hidden = {field: html.unescape(value) for field, value in _HIDDEN.findall(page.text)}
    return browser.post(f"/ui/new/{name}", data={**hidden, "step": step})


def ordered(browser: httpx.Client, name: str, **fields: str) -> httpx.Response:
    page = sent(browser, name, **fields)
    assert page.status_code == 200, page.text
    assert "<h1>" in page.text
    return pressed(browser, name, page)


def rollout_of(source: str, **changes: str) -> dict[str, str]:
    return {"offer": source, "groups": "1,100%", "threshold": "5%", "soak": "0s", **changes}


def job_of(folder: Path, **changes: str) -> dict[str, str]:
    rows = write_rows(reviews(8, 0), folder / "heldout.jsonl")
    text = f'name = "first"\r\neval_file = "{rows}"\r\nrounds = 3\r\n'
    return {"text": text, "priority": "0", **changes}


def test_every_link_of_the_pages_leads_to_a_form_that_says_what_may_be_written(served: Site) -> None:
    texts = [path.read_text() for path in sorted((ROOT / "server/dashboard/templates").glob("*.jinja"))]
    named = {name for text in texts for name in re.findall(r"""order\("([a-z-]+)",""", text)}
    assert named == set(ORDERS)
    with served.signed_in() as alice:
        for name in ORDERS:
            page = alice.get(f"/ui/new/{name}")
            assert page.status_code == 200
            names = {found for _, found in _INPUT.findall(page.text)}
            assert {"form_token"} < names
            assert "<script" not in page.text
    assert [entry.action for entry in audit_of(served.ledger)] == ["sign in"]


def test_a_job_is_checked_shown_and_submitted(served: Site, bundle: Bundle, tmp_path: Path) -> None:
    fields = job_of(tmp_path, path=str(bundle.path))
    with served.signed_in() as alice:
        page = sent(alice, "job", **fields)
        shown = html.unescape(page.text)
        assert page.status_code == 200, shown
        for words in ("Submit job first?", "3 rounds", bundle.sha256[:12], str(bundle.path)):
            assert words in shown
        assert queries.find_job(served.ledger, "first") is None
        again = pressed(alice, "job", page, "edit")  # what was written comes back
        assert "name = &#34;first&#34;" in again.text
        answer = pressed(alice, "job", page)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs/first")
        taken = sent(alice, "job", **fields)
        assert (taken.status_code, "there is a job first already" in taken.text) == (409, True)
        listed = alice.get("/ui/new/job")  # the server knows the bundle now, and the job, after which another may come
        assert f'<option value="{bundle.path}">' in listed.text
        assert '<option value="first">' in listed.text
    record = queries.find_job(served.ledger, "first")
    assert record is not None
    assert (record.state, record.bundle_path, record.config["rounds"]) == ("queued", str(bundle.path), 3)
    entry = audit_of(served.ledger)[0]
    assert (entry.actor, entry.action, entry.subject, entry.outcome) == ("alice", "submit", "first", "done")


@pytest.mark.parametrize(
    ("line", "number", "words"),
    [
        ("rounds = ", 4, "no TOML"),
        ("steps = 0", 4, "steps"),
        ("batch_sise = 4", 4, "did you mean `batch_size`"),
        ("[step]\nlearning_rte = 0.1", 5, "did you mean `learning_rate`"),
        ("[step]\nback_perturbations = -1", 5, "back_perturbations"),
        ("split = 77", 4, "split = 77 is not in the bundle"),
        ("cohort = 2\nmin_reports = 9", 5, "can never be reached"),
        ("[stld]\nlevels = [9]", 4, "level 9"),
    ],
)
def test_an_error_of_a_job_names_the_line_and_what_to_do(
    served: Site, bundle: Bundle, tmp_path: Path, line: str, number: int, words: str
) -> None:
    fields = job_of(tmp_path, path=str(bundle.path))
    with served.signed_in() as alice:
        page = sent(alice, "job", **{**fields, "text": fields["text"] + line.replace("\n", "\r\n") + "\r\n"})
    shown = html.unescape(page.text)
    assert page.status_code == 422
    assert f"line {number}" in shown
    assert words in shown
    assert line.splitlines()[-1] in shown  # nothing of what was written is lost


def test_a_line_is_named_only_where_the_error_is_about_one() -> None:
    other = ConfigError("there is no bundle", "export one")
    assert at_line(other, 'name = "a"\nrounds = 2\n') is other
    with pytest.raises(ConfigError, match="line 2"):
        job_table("a = 1\nb = = 2\n")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200), what=st.text(max_size=100))
def test_no_text_is_a_fault(text: str, what: str) -> None:
    try:
        job_table(text)
    except ConfigError as error:
        at_line(error, text)
    at_line(ConfigError(what, ""), text)


def test_tokens_are_shown_once_and_the_server_keeps_no_secret(served: Site, tmp_path: Path) -> None:
    with served.signed_in() as alice:
        page = sent(alice, "tokens", names="pi-8, pi-9", valid="30m", url="https://127.0.0.1:8443")
        assert "pi-8, pi-9" in page.text
        assert trust_queries.pending_joins(served.ledger, FLEET) == []
        made = pressed(alice, "tokens", page)
        assert made.status_code == 200
        assert made.headers["cache-control"] == "no-store"
        found = re.findall(r"covey-edge join (\S+?)</pre>", made.text)
        assert [decode_token(token).device for token in found] == ["pi-8", "pi-9"]
        again = pressed(alice, "tokens", page)  # the browser's own "load again"
        assert again.status_code == 409
        assert "token by alice" in again.text
        assert "covey-edge join" not in again.text
    ledger = b"".join(path.read_bytes() for path in (tmp_path / "state").glob("ledger.sqlite*"))
    assert all(token.encode() not in ledger for token in found)
    assert [(entry.action, entry.subject) for entry in audit_of(served.ledger)][1] == ("token", "2 names")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"names": "pi 9 9"}, "comes twice"),
        ({"names": "-x"}, "cannot be the name"),
        ({"names": ","}, "0 tokens"),
        ({"names": " ".join(f"n{number}" for number in range(51))}, "51 names"),
        ({"valid": "soon"}, "is not a time"),
        ({"valid": "900d"}, "365 d"),
        ({"url": "https://elsewhere:8443"}, "certificate is not for elsewhere"),
        ({"url": "ftp://127.0.0.1"}, "not an http address"),
    ],
)
def test_an_order_of_tokens_that_cannot_be_is_refused_with_its_reason(
    served: Site, fields: dict[str, str], words: str
) -> None:
    with served.signed_in() as alice:
        page = sent(alice, "tokens", **{"names": "pi-9", "valid": "1h", "url": "https://127.0.0.1:8443", **fields})
    assert page.status_code == 422
    assert words in html.unescape(page.text)


def test_a_server_without_an_authority_says_so(tmp_path: Path) -> None:
    with site(tmp_path) as served, served.signed_in() as alice:
        page = alice.get("/ui/new/tokens")
        assert page.status_code in (409, 422)
        assert "covey fleet init" in html.unescape(page.text)


def closed_job(served: Site, bundle: Bundle, root: Path) -> str:
    """Enter a job with one closed round, whose adapter is among the server's blobs; return the adapter's hash."""
    theta = bundle.initial_adapter()
    blob = BlobStore(root / "state" / "blobs").add(theta.tobytes())
    ledger = served.ledger
    ledger.submit_job("done", FLEET, bundle.sha256, str(bundle.path), {"name": "done", "eval_file": "/x", "rounds": 1})
    ledger.job_is("done", "finished", None)
    ledger.open_round("done", 0, 0, '{"split": 2, "rule": {}}', blob.sha256, None, {"pi-1": None})
    ledger.close_round(
        "done", 0, ClosedRound(0, blob.sha256, blob.sha256, None, None, 0, None, RoundFigures(1, None, None, 0.0, 0.0))
    )
    return str(blob.sha256)


def test_a_jobs_adapter_is_rolled_out_paused_resumed_and_taken_back(
    served: Site, bundle: Bundle, tmp_path: Path
) -> None:
    sha256 = closed_job(served, bundle, tmp_path)
    with served.signed_in() as alice:
        assert "offer=adapter%3Adone" in alice.get("/ui/jobs/done").text
        form = alice.get("/ui/new/rollout", params={"offer": "adapter:done"})
        assert '<option value="adapter:done" selected>' in form.text
        page = sent(alice, "rollout", **rollout_of("adapter:done"))
        shown = html.unescape(page.text)
        for words in ("an adapter", sha256[:12], bundle.sha256[:12], "Group 1: 1 device", "Group 2: 3 devices"):
            assert words in shown
        assert alice.get("/api/v1/rollouts").json()["rollouts"] == []
        answer = pressed(alice, "rollout", page)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/rollouts/1")
        (made,) = alice.get("/api/v1/rollouts").json()["rollouts"]
        assert (made["kind"], made["sha256"], made["groups"], made["state"]) == ("adapter", sha256, 2, "running")
        for action, state in (("pause", "paused"), ("resume", "running"), ("abort", "rolling-back")):
            assert confirm(alice, f"rollout-{action}", "1").status_code == 303
            assert alice.get("/api/v1/rollouts/1").json()["state"] in (state, "aborted")
        entries = [(entry.actor, entry.action) for entry in audit_of(served.ledger)]
        assert ("alice", "rollout start") in entries
        listed = alice.get("/ui/new/rollout").text
        assert "of rollout 1" in listed  # what was rolled out once can be again


def test_a_device_gets_another_name(served: Site) -> None:
    served.ledger.certificate_issued(CertificateRecord("1", FLEET, "pi-1", "a" * 64, "PEM", 2_000_000_000))
    with served.signed_in() as alice:
        assert "/ui/do/rename?target=pi-1" in alice.get("/ui/devices/pi-1").text
        refused = confirm(alice, "rename", "pi-1", value=HTML)
        assert (refused.status_code, HTML in refused.text) == (422, False)
        assert confirm(alice, "rename", "pi-1", value="oven").status_code == 303
    (found,) = trust_queries.certificates_of(served.ledger, FLEET, "oven")
    assert found.serial == "1"
    entry = audit_of(served.ledger)[0]
    assert (entry.action, entry.subject, entry.detail, entry.outcome) == ("rename", "pi-1", "oven", "done")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offer": ""}, "nothing is chosen"),
        ({"path": "/srv/x"}, "both a choice and a path"),
        ({"offer": "", "path": "/srv/x"}, "not said"),
        ({"offer": "", "path": "/srv/x", "kind": "wheel"}, "is no file"),
        ({"offer": "", "path": "bundle", "kind": "bundle"}, "absolute path"),
        ({"offer": "adapter:gone"}, "none of the list"),
        ({"groups": "0"}, "is not the size of a group"),
        ({"groups": ""}, "is empty"),
        ({"threshold": "many"}, "is no share"),
        ({"threshold": "100%"}, "not from 0 to below 1"),
        ({"soak": "a while"}, "is no time"),
        ({"soak": "1\x00h"}, "cannot be printed"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_with_its_reason(
    served: Site, bundle: Bundle, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    closed_job(served, bundle, tmp_path)
    with served.signed_in() as alice:
        page = sent(alice, "rollout", **rollout_of("adapter:done", **changes))
        assert page.status_code in (409, 422)
        assert words in html.unescape(page.text)
        assert alice.get("/api/v1/rollouts").json()["rollouts"] == []


def test_what_was_shown_is_what_is_done_or_it_is_shown_again(served: Site, bundle: Bundle, tmp_path: Path) -> None:
    closed_job(served, bundle, tmp_path)
    with served.signed_in() as alice:
        page = sent(alice, "rollout", **rollout_of("adapter:done"))
        served.ledger.device_state(FLEET, "pi-5", "online")  # the groups are others now
        told = pressed(alice, "rollout", page)
        assert told.status_code == 409
        assert "what will happen has changed" in told.text
        assert alice.get("/api/v1/rollouts").json()["rollouts"] == []
        assert pressed(alice, "rollout", told).status_code == 303


def test_the_second_of_two_operators_is_told_what_the_first_did(served: Site, bundle: Bundle, tmp_path: Path) -> None:
    closed_job(served, bundle, tmp_path)
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        page = sent(bob, "rollout", **rollout_of("adapter:done"))
        assert ordered(alice, "rollout", **rollout_of("adapter:done")).status_code == 303
        assert confirm(alice, "rollout-abort", "1").status_code == 303
        told = pressed(bob, "rollout", page)
        assert told.status_code == 409
        assert "rollout start by alice" in html.unescape(told.text)


def test_a_form_that_is_not_ones_own_orders_nothing(served: Site) -> None:
    fields = {"names": "pi-9", "valid": "1h", "url": "https://127.0.0.1:8443"}
    with served.signed_in(ALICE) as alice, served.signed_in(BOB) as bob:
        page = sent(alice, "tokens", **fields)
        hidden = {field: html.unescape(value) for field, value in _HIDDEN.findall(page.text)} | {"step": "confirm"}
        others = form_token(bob.get("/ui/new/tokens"))
        for token in ("", "0" * 64, others):
            assert alice.post("/ui/new/tokens", data={**hidden, "form_token": token}).status_code == 403
        assert alice.post("/ui/new/tokens", data=hidden, headers={"origin": "https://evil.example"}).status_code == 403
        assert alice.post("/ui/new/tokens", data={**hidden, "seen": "x"}).status_code == 403
        assert not [entry for entry in audit_of(served.ledger) if entry.action == "token"]
    with served.browser() as stranger:
        assert stranger.post("/ui/new/tokens", data=hidden).status_code in (401, 403)


NASTY = st.one_of(
    st.sampled_from(["<script>alert(1)</script>", HTML, "{{ 7*7 }}", "\x00\x1b[2J", "a" * 20_000, "../../etc/passwd"]),
    st.text(max_size=100),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("shared")
    new_trust(folder / "state")
    with site(folder) as found:
        found.ledger.device_state(FLEET, "pi-1", "online")
        yield found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(ORDERS)), data=st.data())
def test_no_input_is_a_fault_or_comes_back_unescaped(shared: Site, name: str, data: Any) -> None:
    shared.clock.now_s += 60
    with shared.signed_in() as browser:
        page = browser.get(f"/ui/new/{name}")
        names = sorted({found for _, found in _INPUT.findall(page.text)} | {"step", "shown", "seen"} - {"form_token"})
        given = data.draw(st.dictionaries(st.sampled_from(names), NASTY))
        answers = [
            browser.get(f"/ui/new/{name}", params=given),
            browser.get(f"/ui/new/{quote(data.draw(NASTY)[:200], safe='')}"),
            browser.post(f"/ui/new/{name}", data={**given, "form_token": form_token(page)}),
        ]
    for answer in answers:
        assert answer.status_code in (200, 303, 400, 403, 404, 405, 409, 414, 422), (answer.status_code, answer.text)
        for text in given.values():
            if "<" in text and len(text) > 2:
                assert text not in answer.text
