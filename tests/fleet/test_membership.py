"""A device that a broker turns away asks the joining side whether it is a member, and believes its fleet's alone."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from brokers import tcp_server
from fleets import wait_for
from joining import Site, joined, joining_again, joining_site

from edge_runtime.errors import EnrolmentError, NetworkError
from edge_runtime.network.address import BrokerAddress, TlsFiles
from edge_runtime.network.cause import Cause, Kind, Place, closed
from edge_runtime.network.mqtt import NO_MEMBER_PAUSE_S, MqttTransport
from edge_runtime.trust.identity import read_identity
from edge_runtime.trust.membership import Membership, ask_membership
from edge_runtime.trust.renew import renew_if_due
from server.trust.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSED = closed(None, Place("broker", "127.0.0.1", 8883))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining_site(tmp_path / "server") as made:
        yield made


@pytest.fixture
def config(site: Site, tmp_path: Path) -> Path:
    path = tmp_path / "device" / "edge.toml"
    joined(site.token("pi"), path)
    return path


def test_a_member_is_told_nothing(site: Site, config: Path) -> None:
    assert ask_membership(config) == "pi"
    assert Membership(config).why(CLOSED) is None


@pytest.mark.parametrize("kind", ["closed", "client-certificate-refused", "not-authorised"])
def test_who_was_revoked_is_told_when_why_and_what_to_do(site: Site, config: Path, kind: Kind) -> None:
    site.ledger.revoke_device("default", "pi", "lost in the train")
    cause = Membership(config).why(Cause(kind, "", ""))
    assert cause is not None
    assert "the certificate of pi was revoked at" in cause.finding
    assert "lost in the train" in cause.finding
    assert "covey fleet token pi" in cause.remedy
    assert isinstance(cause.error(), EnrolmentError)


def test_who_has_expired_or_is_unknown_by_the_servers_ledger_is_told_too(site: Site, config: Path) -> None:
    site.now_s += 100 * 86400
    cause = Membership(config).why(CLOSED)
    assert cause is not None
    assert "the certificate of pi expired at" in cause.finding


@pytest.mark.parametrize("kind", ["refused", "unreachable", "acl", "expired", "wrong-name"])
def test_other_causes_ask_nobody(site: Site, config: Path, kind: Kind) -> None:
    site.ledger.revoke_device("default", "pi", "")
    assert Membership(config).why(Cause(kind, "", "")) is None


def test_the_joining_side_is_asked_every_ten_seconds_at_most(site: Site, config: Path) -> None:
    now = [0.0]
    membership = Membership(config, lambda: now[0])
    assert membership.why(CLOSED) is None
    site.ledger.revoke_device("default", "pi", "")
    now[0] = 9.0
    assert membership.why(CLOSED) is None
    now[0] = 10.0
    assert membership.why(CLOSED) is not None


def test_a_joining_side_of_another_fleet_is_not_believed(site: Site, config: Path, tmp_path: Path) -> None:
    """Whoever listens at the address says 403 as often as they like: without the fleet's certificate it is no word."""
    port = int(site.url.rpartition(":")[2])
    with joining_site(tmp_path / "other") as other:
        about = config.with_name("edge-trust") / "identity.json"
        about.write_text(about.read_text().replace(str(port), other.url.rpartition(":")[2]))
        with pytest.raises(NetworkError):
            ask_membership(config)
        assert Membership(config).why(CLOSED) is None


def test_a_server_that_is_away_says_nothing(tmp_path: Path) -> None:
    config = tmp_path / "device" / "edge.toml"
    with joining_site(tmp_path / "server") as site:
        joined(site.token("pi"), config)
        port = int(site.url.rpartition(":")[2])
    assert Membership(config).why(CLOSED) is None
    with joining_again(tmp_path / "server", port) as site:
        site.ledger.revoke_device("default", "pi", "")
        assert Membership(config).why(CLOSED) is not None


def test_a_transport_that_is_told_says_it_at_once_and_stays_away_for_long(site: Site, config: Path) -> None:
    """No waiting for connect_timeout_s, and no look at the port."""
    site.ledger.revoke_device("default", "pi", "")
    with tcp_server(lambda _connection: None) as port:  # it hangs up
        address = BrokerAddress("127.0.0.1", port, tls=False, username=None, password=None)
        with pytest.raises(EnrolmentError, match="was revoked at"):
            MqttTransport(address, "covey-pi", connect_timeout_s=600.0, ask_why=Membership(config).why)


def test_a_broker_that_refuses_the_login_is_asked_about_too(site: Site, config: Path) -> None:
    site.ledger.revoke_device("default", "pi", "stolen")

    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00\x05")  # not authorised

    with tcp_server(refuse) as port:
        address = BrokerAddress("127.0.0.1", port, tls=False, username=None, password=None)
        with pytest.raises(EnrolmentError, match="was revoked at"):
            MqttTransport(address, "covey-pi", connect_timeout_s=600.0, ask_why=Membership(config).why)


@pytest.mark.parametrize("joins_anew", [False, True])
def test_a_renewed_certificate_is_shown_with_the_next_connection(site: Site, config: Path, joins_anew: bool) -> None:
    """A device that runs for months reconnects with the certificate that it has then, and with no key but its own."""
    context = server_context(site.trust, needs_certificate=True)
    shown: list[str] = []
    hang_up = threading.Semaphore(0)

    def broker(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            shown.append(str((secured.getpeercert() or {})["serialNumber"]))
            secured.recv(1000)
            secured.sendall(b"\x20\x02\x00\x00")
            hang_up.acquire(timeout=60)

    trust = config.with_name("edge-trust")
    tls = TlsFiles(str(trust / "ca.pem"), str(trust / "cert.pem"), str(trust / "key.pem"))
    before = read_identity(trust).certificate.serial_number
    with tcp_server(broker) as port:
        address = BrokerAddress("127.0.0.1", port, tls=True, username=None, password=None)
        transport = MqttTransport(address, "covey-pi", tls=tls, connect_timeout_s=60.0)
        try:
            if joins_anew:
                joined(site.token("pi"), config, may_change=True)
            else:
                assert renew_if_due(config, time.time(), is_due=True) is not None
            after = read_identity(trust).certificate.serial_number
            assert after != before
            hang_up.release()
            wait_for(lambda: len(shown) == 2, "the second connection", 60.0)
        finally:
            hang_up.release(2)
            transport.close()
    assert [int(one, 16) for one in shown[:2]] == [before, before if joins_anew else after]


def test_a_device_at_work_that_is_revoked_stays_and_asks_seldom(
    site: Site, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hang_up = threading.Event()
    logins: list[bytes] = []

    def broker(connection: socket.socket) -> None:
        logins.append(connection.recv(1000))
        if not hang_up.is_set():
            connection.sendall(b"\x20\x02\x00\x00")
            hang_up.wait(60)

    with tcp_server(broker) as port:
        address = BrokerAddress("127.0.0.1", port, tls=False, username=None, password=None)
        transport = MqttTransport(address, "covey-pi", connect_timeout_s=60.0, ask_why=Membership(config).why)
        try:
            site.ledger.revoke_device("default", "pi", "")
            hang_up.set()
            wait_for(lambda: transport._client._reconnect_min_delay >= NO_MEMBER_PAUSE_S, "the long pause", 60.0)
        finally:
            transport.close()
    assert len(logins) == 2
    assert [record.message for record in caplog.records if "no member of its fleet any more" in record.message]
