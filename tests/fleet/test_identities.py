"""Certificates are renewed, revoked and renamed, and the joining side takes no bad input: over real TLS connections."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joining import Site, joined, joining_site, post

from edge_runtime.agent.config import read_edge_config
from edge_runtime.errors import EnrolmentError
from edge_runtime.trust.exchange import NotNowError, trusting
from edge_runtime.trust.folder import IdentityFolder
from edge_runtime.trust.identity import read_identity
from edge_runtime.trust.keys import certificate_pem, make_request, name_of, new_key, serial_of
from edge_runtime.trust.messages import MOST_BYTES
from edge_runtime.trust.renew import Renewals, renew_if_due
from edge_runtime.trust.token import decode_token
from edge_runtime.trust.validity import ClockError
from server.storage import trust_queries
from server.trust.rate_limit import Rate
from server.web.connections import Limits

DAY_S = 86400.0


# -- renewal, revocation, another name ---------------------------------------------------------------------------------


def test_a_certificate_is_renewed_when_a_third_is_left(site: Site, tmp_path: Path) -> None:
    config, now_s = tmp_path / "pi" / "edge.toml", time.time()
    joined(site.token("pi-a"), config)
    before = read_identity(IdentityFolder(config).path)
    assert renew_if_due(config, now_s + 59 * DAY_S) is None
    site.now_s = now_s + 61 * DAY_S
    with pytest.raises(ClockError, match="this machine's clock says"):  # the new one is of a later time than this
        renew_if_due(config, now_s, is_due=True)
    renewed = renew_if_due(config, now_s + 61 * DAY_S)
    assert renewed is not None
    assert renewed.certificate.not_valid_after_utc > before.certificate.not_valid_after_utc
    assert renewed.key.private_numbers() == before.key.private_numbers()
    for later_s in (100 * DAY_S, -30 * 365 * DAY_S):
        with pytest.raises(ClockError):
            renew_if_due(config, now_s + 90 * DAY_S + later_s, is_due=True)


def test_a_revoked_or_expired_certificate_is_not_renewed(site: Site, tmp_path: Path) -> None:
    for name in ("pi-a", "pi-b"):
        joined(site.token(name), tmp_path / name / "edge.toml")
    assert site.ledger.revoke_device("default", "pi-a", "revoked by the operator") == 1
    serials = trust_queries.revoked_serials(site.ledger, "default", time.time())
    assert serials == {serial_of(read_identity(IdentityFolder(tmp_path / "pi-a" / "edge.toml").path).certificate)}
    assert trust_queries.revoked_serials(site.ledger, "default", time.time() + 91 * DAY_S) == frozenset()
    with pytest.raises(EnrolmentError, match=r"was revoked at .* by the operator"):
        renew_if_due(tmp_path / "pi-a" / "edge.toml", time.time(), is_due=True)
    site.now_s += 91 * DAY_S
    with pytest.raises(EnrolmentError, match="expired at"):
        renew_if_due(tmp_path / "pi-b" / "edge.toml", time.time(), is_due=True)


def test_a_revoked_device_cannot_come_back_with_its_old_key_or_token(site: Site, tmp_path: Path) -> None:
    config, token = tmp_path / "pi" / "edge.toml", site.token("pi-a")
    joined(token, config)
    site.ledger.revoke_device("default", "pi-a", "stolen")
    key = read_identity(IdentityFolder(config).path).key
    for word in (token, site.token("pi-a")):
        found = decode_token(word)
        body = {"token_id": found.id.hex(), "secret": found.secret.hex(), "csr": make_request(key, "pi-a")}
        status, answer = post(site, "/join", json.dumps(body).encode())
        assert status == 403
        assert "revoked" in answer["error"]


def test_renewal_needs_the_old_certificate_and_its_key(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-a"), config)
    own = IdentityFolder(config).path
    pem = certificate_pem(site.trust.authority.certificate)
    body = json.dumps({"csr": make_request(new_key(), "pi-a")}).encode()
    assert post(site, "/renew", body)[0] == 403
    status, answer = post(site, "/renew", body, trusting(pem, (own / "cert.pem", own / "key.pem")))
    assert (status, "another key" in answer["error"]) == (403, True)
    server = (site.trust.folder / "server.pem", site.trust.folder / "server-key.pem")
    status, answer = post(site, "/renew", body, trusting(pem, server))
    assert (status, "not issued to a device" in answer["error"]) == (403, True)


def test_a_new_name_is_taken_with_the_next_question(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-a"), config)
    site.ledger.tag_device("default", "pi-a", "kitchen")
    old = serial_of(read_identity(IdentityFolder(config).path).certificate)
    assert renew_if_due(config, time.time(), asks_name=True) is None
    assert site.ledger.rename_certificates("default", "pi-a", "oven")
    renewed = renew_if_due(config, time.time(), asks_name=True)
    assert renewed is not None
    assert (name_of(renewed.certificate), read_edge_config(config).name) == ("oven", "oven")
    assert "# the private rows" in config.read_text()
    from server.storage.device_queries import tags_of

    assert tags_of(site.ledger, "default") == {"oven": {"kitchen"}}
    assert old not in trust_queries.revoked_serials(site.ledger, "default", time.time())  # the answer may be lost
    assert renew_if_due(config, time.time(), asks_name=True) is None
    assert old in trust_queries.revoked_serials(site.ledger, "default", time.time())


def test_a_running_device_asks_by_itself(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-a"), config)
    site.ledger.rename_certificates("default", "pi-a", "oven")
    asked = threading.Event()

    def clock_s() -> float:
        if checks:
            asked.set()  # the check before this one has come to its end
        checks.append(0)
        return time.time()

    checks: list[int] = []
    renewals = Renewals(config, clock_s, every_s=0.01)
    renewals.start()
    assert asked.wait(20)
    renewals.close()
    assert read_edge_config(config).name == "oven"


def test_a_renewal_that_is_cut_off_at_any_rename_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-0"), config)
    replace, left = os.replace, [0]

    def cut(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    for at in range(1, 9):
        assert site.ledger.rename_certificates("default", f"pi-{at - 1}", f"pi-{at}")
        left[0] = at
        with contextlib.suppress(KeyboardInterrupt):
            renew_if_due(config, time.time(), asks_name=True)
        was_cut = left[0] <= 0
        left[0] = 0
        renew_if_due(config, time.time(), asks_name=True)
        own = read_identity(IdentityFolder(config).path)
        assert name_of(own.certificate) == read_edge_config(config).name == f"pi-{at}"
    assert not was_cut  # the last one had more renames to go than there are


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[" * 5000,
        b"null",
        b'{"token_id": 1}',
        b"\xff\xfe",
        b'{"token_id": "' + b"0" * 16 + b'\\n"}',
        b"{" * 16000,
    ],
)
def test_a_body_that_is_none_is_refused_without_being_quoted(shared: Site, body: bytes) -> None:
    status, answer = post(shared, "/join", body)
    assert status == 400
    assert set(answer) == {"error", "hint", "exit_code"}
    assert answer["hint"]


@given(st.binary(max_size=200))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_noise_is_accepted(shared: Site, body: bytes) -> None:
    assert post(shared, "/join", body)[0] == 400


def test_a_body_that_is_too_large_is_not_read_to_its_end(shared: Site) -> None:
    status, answer = post(shared, "/join", b"x" * (MOST_BYTES + 1))
    assert (status, "larger than" in answer["error"]) == (413, True)


def test_a_connection_that_never_shakes_hands_is_ended(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state", limits=Limits(header_s=0.2)) as site:
        host, port = site.url.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as silent:
            assert silent.recv(1) == b""
        joined(site.token("pi-a"), tmp_path / "pi" / "edge.toml")


def test_other_paths_and_methods_answer_json(shared: Site) -> None:
    assert post(shared, "/", b"")[0] == 404
    assert post(shared, "/ca", b"")[0] == 405
    status, answer = post(shared, "/blobs/x", b"")
    assert (status, bool(answer["hint"])) == (404, True)


def test_guesses_are_slowed_down(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state", each=Rate(100, 0.001)) as site:
        token = msgspec.structs.replace(decode_token(site.token("pi-a")), secret=bytes(24))
        body = {"token_id": token.id.hex(), "secret": token.secret.hex(), "csr": make_request(new_key(), "pi-a")}
        codes = [post(site, "/join", json.dumps(body).encode())[0] for _ in range(4)]
        assert codes == [403, 403, 429, 429]
        with pytest.raises(NotNowError, match="too many requests") as slowed:
            joined(site.token("pi-b"), tmp_path / "pi" / "edge.toml")
        assert slowed.value.retry_s is not None
