"""Why a broker cannot be used: each cause has its own finding, the same in doctor and run, against a real mosquitto."""

from __future__ import annotations

import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from brokers import (
    DYNAMIC_SECURITY,
    PASSWORD,
    USER,
    Brokers,
    all_brokers,
    http_port,
    old_tls_port,
    silent_port,
    ssh_port,
)
from fleets import free_port, has_mosquitto

from edge_runtime.errors import NetworkError
from edge_runtime.network.access import check_access
from edge_runtime.network.address import TlsFiles, parse_broker
from edge_runtime.network.causes import cause_of_error
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from certificates import Pair

    from edge_runtime.network.access import Access

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto"),
]
TOPIC = "covey/v1/default/pi"


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    folder = tmp_path_factory.mktemp("brokers")
    for place in (folder, folder.parent):
        place.chmod(0o755)
    with all_brokers(folder) as made:
        yield made


@dataclass(frozen=True)
class Case:
    """An address that cannot be used.

    Attributes:
        listener: the listener of Brokers.
        address: the broker's address, without the port.
        ca, own: names of files of Brokers.
        kind: the cause.
        words: what its finding says.
    """

    listener: str
    address: str
    kind: str
    words: str
    ca: str | None = "ca"
    own: str | None = None

    def __str__(self) -> str:
        return f"{self.listener}-{self.kind}"


PLAIN, SECURE = "mqtt://127.0.0.1", "mqtts://127.0.0.1"
CASES = [
    Case("plain", "mqtt://no-such-name.invalid", "name-unknown", "no-such-name.invalid"),
    Case("plain", "mqtt://127.0.0.2", "local-only", "listens on localhost only, not on 127.0.0.2"),
    Case("closed", PLAIN, "refused", "no program takes connections on port"),
    Case("plain", SECURE, "tls-unwanted", "does not speak TLS: it is a plain port"),
    Case("tls", PLAIN, "tls-wanted", "speaks TLS, and the address asks for a plain connection"),
    Case("tls", SECURE, "unknown-authority", "is not trusted here", ca="other_ca"),
    Case("tls", SECURE, "unknown-authority", "is not trusted here", ca=None),
    Case("expired", SECURE, "expired", "has expired (this machine's clock: 20"),
    Case("not-yet-valid", SECURE, "not-yet-valid", "is not valid yet by this machine's clock (20"),
    Case("no-names", SECURE, "no-names", "has no subjectAltName"),
    Case("other-name", SECURE, "wrong-name", "is for another name than 127.0.0.1"),
    Case("client-only", SECURE, "extension", "unsuitable certificate purpose"),
    Case("mutual", SECURE, "client-certificate-missing", "asks for a client certificate, and none is configured"),
    Case("mutual-1.2", SECURE, "client-certificate-missing", "asks for a client certificate, and none is configured"),
    Case("mutual", SECURE, "client-certificate-refused", "refuses this member's certificate", own="stranger"),
    Case("mutual-1.2", SECURE, "client-certificate-refused", "refuses this member's certificate", own="stranger"),
    Case("mutual", SECURE, "client-certificate-expired", "certificate expired", own="expired"),
    Case("mutual-1.2", SECURE, "client-certificate-expired", "certificate expired", own="expired"),
    Case("password", PLAIN, "password-missing", "asks for a user name and a password"),
    Case("password", "mqtt://pi:wrong@127.0.0.1", "not-authorised", "refuses the user 'pi' or its password"),
    Case("http", PLAIN, "not-a-broker", "is not an MQTT broker but an HTTP server"),
    Case("http", SECURE, "not-a-broker", "is not an MQTT broker but an HTTP server"),
    Case("ssh", PLAIN, "not-a-broker", "something that answers 'SSH-2.0-OpenSSH_9.2"),
    Case("ssh", SECURE, "not-a-broker", "something that answers 'SSH-2.0-OpenSSH_9.2"),
    Case("old-tls", SECURE, "tls-version", "no version of TLS in common"),
    Case("silent", PLAIN, "silent", "takes the connection and never answers"),
    Case("silent", SECURE, "silent", "takes the connection and never answers"),
]


def tls_files(brokers: Brokers, ca: str | None, own: str | None) -> TlsFiles:
    pair: Pair | None = getattr(brokers, own) if own is not None else None
    files = (getattr(brokers, ca) if ca is not None else None, pair and pair.cert, pair and pair.key)
    return TlsFiles(*(None if path is None else str(path) for path in files))


@pytest.fixture(scope="module")
def ports(brokers: Brokers) -> Iterator[dict[str, int]]:
    """The port of every listener, and of what is no broker."""
    with http_port() as web, ssh_port() as ssh, silent_port() as silent, old_tls_port(brokers.member) as old:
        yield brokers.ports | {"http": web, "ssh": ssh, "silent": silent, "old-tls": old, "closed": free_port()}


def doctor(url: str, tls: TlsFiles) -> Access:
    kinds = [f"{TOPIC}/{kind}" for kind in ("plan", "birth", "state", "report")]
    return check_access(parse_broker(url), "covey-check", tls, reads=kinds[:1], writes=kinds[1:], timeout_s=1.0)


def run(url: str, tls: TlsFiles) -> str:
    """Return what ``run`` ends with."""
    with pytest.raises(NetworkError, match="no connection to the broker") as raised:
        MqttTransport(parse_broker(url), "covey-default-pi", tls=tls, connect_timeout_s=1.0)
    return str(raised.value)


def test_each_cause_has_its_finding_and_remedy_and_doctor_and_run_say_the_same(
    brokers: Brokers, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cases at once: most of them wait for something that never comes."""
    monkeypatch.setattr("edge_runtime.network.diagnose._TIMEOUT_S", 1.0)

    def both(case: Case) -> str:
        url, tls = f"{case.address}:{ports[case.listener]}", tls_files(brokers, case.ca, case.own)
        causes = doctor(url, tls).causes
        said = run(url, tls)
        wrong = [cause.kind for cause in causes] != [case.kind] or case.words not in causes[0].finding
        differs = not wrong and not (said.endswith(causes[0].remedy) and causes[0].finding in said)
        return f"{case}: doctor {[str(c) for c in causes]}; run {said}" if wrong or differs else ""

    with ThreadPoolExecutor(len(CASES)) as pool:
        assert [failed for failed in pool.map(both, CASES) if failed] == []


@pytest.mark.parametrize(
    ("listener", "address", "own"),
    [
        ("plain", PLAIN, None),
        ("tls", SECURE, None),
        ("mutual", SECURE, "member"),
        ("mutual-1.2", SECURE, "member"),
        ("password", f"mqtt://{USER}:{PASSWORD}@127.0.0.1", None),
    ],
)
def test_what_works_has_no_cause(brokers: Brokers, listener: str, address: str, own: str | None) -> None:
    url, tls = f"{address}:{brokers.ports[listener]}", tls_files(brokers, "ca", own)
    access = doctor(url, tls)
    assert (list(access.causes), access.is_publishing_known) == ([], True)
    MqttTransport(parse_broker(url), "covey-works", tls=tls, connect_timeout_s=20.0).close()


def test_an_access_list_is_found_topic_by_topic(brokers: Brokers) -> None:
    """mosquitto confirms what it drops in MQTT 3.1.1; only ``birth`` is allowed."""
    access = doctor(f"mqtt://{USER}:{PASSWORD}@127.0.0.1:{brokers.ports['access']}", TlsFiles())
    assert [cause.kind for cause in access.causes] == ["acl", "acl"]
    for cause, kind in zip(access.causes, ("state", "report"), strict=True):
        assert f"does not let the user 'pi' publish on {TOPIC}/{kind}" in cause.finding
        assert f"add 'topic write {TOPIC}/{kind}'" in cause.remedy
        assert PASSWORD not in str(cause)


@pytest.mark.skipif(DYNAMIC_SECURITY is None, reason="mosquitto's dynamic security plugin is not installed")
def test_a_refused_subscription_is_found_and_said_by_run(brokers: Brokers, caplog: pytest.LogCaptureFixture) -> None:
    url = f"mqtt://{USER}:{PASSWORD}@127.0.0.1:{brokers.ports['subscriptions']}"
    cause = doctor(url, TlsFiles()).causes[0]
    assert cause.kind == "acl"
    assert f"subscribe to {TOPIC}/plan" in cause.finding
    transport = MqttTransport(parse_broker(url), "covey-default-pi", connect_timeout_s=20.0)
    transport.subscribe(f"{TOPIC}/plan")
    transport.deliver(f"{TOPIC}/state", b"x")  # the broker answers in order
    transport.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [str(cause)]


def test_the_strict_check_of_python_3_13_is_left_out_and_said_where_it_is_on(brokers: Brokers) -> None:
    """An older authority without key usage works on every Python; a strict context says which extension is missing."""
    tls = TlsFiles(str(brokers.ca.parents[1] / "bare" / "ca.pem"))
    address = parse_broker(f"mqtts://127.0.0.1:{brokers.ports['bare']}")
    MqttTransport(address, "covey-bare", tls=tls, connect_timeout_s=20.0).close()
    strict = tls_context(tls)
    assert not strict.verify_flags & ssl.VERIFY_X509_STRICT
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection((address.host, address.port)) as plain, pytest.raises(ssl.SSLError) as raised:
        strict.wrap_socket(plain, server_hostname=address.host)
    cause = cause_of_error(raised.value, address.place(tls))
    assert cause.kind == "extension"
    assert "keyUsage=critical,keyCertSign" in cause.remedy
    assert sys.version_info < (3, 13) or ssl.create_default_context().verify_flags & ssl.VERIFY_X509_STRICT
