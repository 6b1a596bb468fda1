"""Servers that announce themselves by mDNS, on loopback: found, chosen by authority, and not believed."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from brokers import tcp_server
from certificates import Authority
from fleets import free_port
from hypothesis import given, settings
from hypothesis import strategies as st
from joining import FACTS, Site, joining_site

from edge_runtime.errors import ConfigError, EnrolmentError
from edge_runtime.trust.announcement import Announcement, from_text, to_text
from edge_runtime.trust.discovery import Found, browse, chosen, discover
from edge_runtime.trust.exchange import JoinServer, NotNowError
from edge_runtime.trust.identity import read_identity
from edge_runtime.trust.join import JoinOptions, join
from edge_runtime.trust.keys import certificate_pem
from edge_runtime.trust.token import JoinToken, decode_token
from server.serving.announce import announced
from server.serving.options import ServeOptions
from server.trust.folder import init_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = ["127.0.0.1"]
SHA = "ab" * 32


def multicast_is_missing() -> str | None:
    """Return why mDNS cannot be used on this machine's loopback; None: it can."""
    zeroconf = pytest.importorskip("zeroconf")
    try:
        zeroconf.Zeroconf(interfaces=HERE).close()
    except (OSError, RuntimeError) as error:
        return f"no socket for mDNS: {error}"
    return None


@pytest.fixture
def _multicast() -> None:
    if (why := multicast_is_missing()) is not None:
        pytest.skip(why)


def look(sha256: bytes) -> Found:
    return discover(sha256, browse_s=20.0, interfaces=HERE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining_site(tmp_path / "server") as made:
        yield made


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def announcing(site: Site, port: int | None = None) -> contextlib.AbstractContextManager[None]:
    options = ServeOptions(site.trust.folder.parent, listen=HERE[0], announce=True)
    return announced(options, site.trust, port or port_of(site.url))


def options_of(token: JoinToken, config: Path, discovered: Found | None = None) -> JoinOptions:
    config.parent.mkdir(parents=True, exist_ok=True)
    find = look if discovered is None else lambda _sha: discovered
    return JoinOptions(token, config, None, "rows.jsonl", False, FACTS, find)


def token_to_nowhere(site: Site, name: str = "pi") -> JoinToken:
    """A token of the fleet whose address leads to nobody any more."""
    made = decode_token(site.token(name))
    return JoinToken(
        f"https://127.0.0.1:{free_port()}", made.authority_sha256, made.id, made.secret, made.device, made.expires_at_s
    )


# -- found ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_multicast")
def test_a_token_whose_address_leads_nowhere_joins_at_the_server_that_announces_itself(
    site: Site, tmp_path: Path
) -> None:
    config = tmp_path / "device" / "edge.toml"
    with announcing(site):
        edge = join(options_of(token_to_nowhere(site), config), time.time, lambda _s: False)
    assert (edge.name, edge.broker) == ("pi", "mqtt://localhost:1883")  # the first host of the server's certificate
    about = read_identity(config.with_name("edge-trust")).about
    assert port_of(about.join_url) == port_of(site.url)  # where it renews, too


@pytest.mark.usefixtures("_multicast")
def test_the_server_of_the_tokens_authority_is_picked_among_several(site: Site, tmp_path: Path) -> None:
    with joining_site(tmp_path / "other", fleet="other") as other, announcing(other), announcing(site):
        seen: set[str] = set()

        def are_both(one: Announcement) -> bool:
            seen.add(one.authority_sha256)
            return len(seen) == 2

        heard = browse(30.0, HERE, are_both)
        assert {one.authority_sha256: one.fleet for one in heard} == {
            site.trust.authority.sha256.hex(): "default",
            other.trust.authority.sha256.hex(): "other",
        }
        found = chosen(heard, site.trust.authority.sha256)
        assert {port_of(url) for url in found.urls} == {port_of(site.url)}


@pytest.mark.usefixtures("_multicast")
def test_a_server_that_has_ended_is_announced_no_more(site: Site) -> None:
    with announcing(site):
        assert look(site.trust.authority.sha256).urls
    found = discover(site.trust.authority.sha256, browse_s=1.5, interfaces=HERE)
    assert (list(found.urls), "no server announces itself" in found.said) == ([], True)


def test_the_tokens_address_comes_first_and_a_given_one_is_the_only_one(site: Site, tmp_path: Path) -> None:
    def never(_sha256: bytes) -> Found:
        raise AssertionError("nobody asked for it")

    token = decode_token(site.token("pi"))
    config = tmp_path / "device" / "edge.toml"
    config.parent.mkdir()
    assert join(JoinOptions(token, config, None, "rows", False, FACTS, never), time.time, lambda _s: False).name == "pi"
    given = f"https://127.0.0.1:{free_port()}"
    with pytest.raises(NotNowError):
        join(
            JoinOptions(token_to_nowhere(site), tmp_path / "e.toml", given, "rows", False, FACTS, never),
            time.time,
            lambda _s: False,
        )


def test_a_refusal_of_the_real_server_is_final_and_looks_no_further(site: Site, tmp_path: Path) -> None:
    token = token_to_nowhere(site)
    wrong = JoinToken(token.server_url, token.authority_sha256, token.id, b"x" * 24, token.device, token.expires_at_s)
    found = Found([site.url, "https://127.0.0.1:1"], "")
    with pytest.raises(EnrolmentError, match="no such join token"):
        join(options_of(wrong, tmp_path / "d" / "edge.toml", found), time.time, lambda _s: False)


# -- not found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ([], "no server announces itself in the local network (covey serve --announce)"),
        ([Announcement("other", "cd" * 32, ["10.0.0.9"], 8443)], "1 in the local network announce themselves, none"),
        ([Announcement("other", "cd" * 32, [], 8443)], "other at no address"),
    ],
)
def test_none_is_said_with_what_there_is_instead(
    site: Site, tmp_path: Path, heard: list[Announcement], said: str
) -> None:
    found = chosen(heard, bytes.fromhex(SHA))
    assert not found.urls
    with pytest.raises(NotNowError) as error:
        join(options_of(token_to_nowhere(site), tmp_path / "d" / "edge.toml", found), time.time, lambda _s: False)
    assert said in error.value.what
    assert "covey-edge join https://server:8443 TOKEN" in error.value.hint


def test_a_missing_library_is_said_with_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    assert "pip install 'covey[mdns]'" in discover(bytes(32)).said
    trust = init_trust(tmp_path, "default", ["localhost"], 8443, dt.datetime.now(dt.timezone.utc))
    with pytest.raises(ConfigError) as error, announced(ServeOptions(tmp_path), trust, 8443):
        pass
    assert "covey[mdns]" in error.value.hint


# -- not believed ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def liar(folder: Path, ca_pem: str) -> Iterator[tuple[int, list[bytes]]]:
    """A server that hands out the real authority's certificate, as anybody can, and keeps what it is sent."""
    pair = Authority(folder).make("broker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    got: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        try:
            secured = context.wrap_socket(connection, server_side=True)
            got.append(secured.recv(100_000))
        except OSError:
            got.append(b"")
            return
        body = ca_pem.encode()
        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        secured.close()

    with tcp_server(answer) as port:
        yield port, got


@pytest.mark.usefixtures("_multicast")
def test_a_liar_that_announces_the_same_hash_gets_no_secret(site: Site, tmp_path: Path) -> None:
    token = token_to_nowhere(site)
    with liar(tmp_path / "liar", certificate_pem(site.trust.authority.certificate)) as (port, got):
        with announcing(site, port), pytest.raises(NotNowError) as error:
            join(options_of(token, tmp_path / "d" / "edge.toml"), time.time, lambda _s: False)
        assert got[0].startswith(b"GET /ca")
        assert len(got) >= 2  # it was asked again over TLS that trusts the authority alone, and shown nothing
        assert not any(b"POST" in one or token.secret.hex().encode() in one for one in got)
        assert "the authority that signed the certificate" in error.value.what
        # Beside the real one it changes nothing but the time.
        found = Found([f"https://127.0.0.1:{port}", site.url], "")
        assert join(options_of(token, tmp_path / "e" / "edge.toml", found), time.time, lambda _s: False).name == "pi"
        assert not any(token.secret.hex().encode() in one for one in got)


def test_the_fleets_own_broker_is_not_its_server(site: Site, tmp_path: Path) -> None:
    """Whoever has stolen the broker's key has a certificate of the authority, and gets no token either."""
    from edge_runtime.trust.keys import own_key

    folder = tmp_path / "broker"
    folder.mkdir()
    made = site.trust.authority.broker(HERE, own_key(folder / "key").public_key(), dt.datetime.now(dt.timezone.utc))
    (folder / "cert").write_text(certificate_pem(made))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    got: list[bytes] = []
    ca = certificate_pem(site.trust.authority.certificate).encode()

    def answer(connection: socket.socket) -> None:
        secured = context.wrap_socket(connection, server_side=True)
        got.append(secured.recv(100_000))
        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(ca), ca))
        secured.close()

    token = token_to_nowhere(site)
    with tcp_server(answer) as port:
        found = Found([f"https://127.0.0.1:{port}"], "")
        with pytest.raises(NotNowError, match="not its server's"):
            join(options_of(token, tmp_path / "d" / "edge.toml", found), time.time, lambda _s: False)
    assert not any(token.secret.hex().encode() in one for one in got)


@settings(max_examples=60)
@given(
    text=st.dictionaries(
        st.sampled_from([b"v", b"fleet", b"ca", b"hosts", b"x"]), st.none() | st.binary(max_size=255), max_size=5
    ),
    addresses=st.lists(st.text(max_size=60), max_size=12),
    port=st.none() | st.integers(-1, 70000),
)
def test_whatever_is_announced_is_read_or_left_out(
    text: dict[bytes, bytes | None], addresses: list[str], port: int | None
) -> None:
    for given_text in (text, {**text, b"v": b"1"}):
        found = from_text(given_text, addresses, port)
        if found is None:
            continue
        assert found.fleet.isprintable()
        assert len(found.urls) <= 8
        for url in found.urls:
            assert JoinServer(url).place.port == port


@settings(max_examples=40)
@given(st.lists(st.from_regex(r"[a-z0-9-]{1,60}\.local", fullmatch=True), max_size=20))
def test_an_announcement_fits_its_record_and_comes_back(hosts: list[str]) -> None:
    text = to_text(Announcement("fleet", SHA, hosts, 8443))
    assert all(len(key) + len(value) < 255 for key, value in text.items())
    found = from_text(text, ["192.0.2.7"], 8443)
    assert found is not None
    assert (found.fleet, found.authority_sha256, found.port) == ("fleet", SHA, 8443)
    assert list(found.hosts)[-1] == "192.0.2.7"
    assert set(found.hosts[:-1]) <= set(hosts)


def test_announcing_needs_an_authority(tmp_path: Path) -> None:
    from server.serving.security import open_security

    with joining_site(tmp_path) as site, pytest.raises(ConfigError, match="--announce is for a fleet"):
        open_security(ServeOptions(tmp_path / "bare", announce=True), site.ledger)
