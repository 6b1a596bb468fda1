"""After ``covey fleet init`` only members are heard: over TLS, with signatures, and as long as they are not revoked."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from fleets import wait_for
from trusted import TrustedFleet

from edge_runtime.agent.config import read_edge_config
from edge_runtime.errors import ConfigError, EnrolmentError
from edge_runtime.network.address import BrokerAddress
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import DeviceState
from server.serving.options import default_listen, default_mqtt_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def get(fleet: TrustedFleet, context: ssl.SSLContext, path: str = "/healthz") -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", fleet.said["http_port"], context=context, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_job_over_tls_with_signatures_and_a_device_that_is_revoked_in_mid_fleet(fleet: TrustedFleet) -> None:
    server = fleet.open()
    for seed, name in enumerate(["a", "b", "thief"]):
        config = read_edge_config(fleet.join(name, seed))
        assert config.broker == f"mqtts://127.0.0.1:{fleet.said['mqtt_port']}"
        assert (config.server_url or "").startswith("https://")
        assert config.signing is not None
    devices = {name: fleet.start(name) for name in ("a", "b", "thief")}
    wait_for(lambda: list(fleet.states().values()).count("online") == 3, "three devices")
    fleet.submit("first", rounds=2, min_devices=3)
    assert fleet.covey("job", "watch", "first")["state"] == "finished"
    shown = fleet.covey("job", "show", "first")
    assert [row["reports"] for row in shown["round_list"]] == [3, 3]
    assert get(fleet, fleet.context("thief")) == 200

    assert fleet.covey("device", "revoke", "thief")["certificates"] == 1
    wait_for(lambda: fleet.states()["thief"] != "online", "the server to lose the thief", 60.0)
    assert get(fleet, fleet.context("thief")) == 403
    assert get(fleet, fleet.context("a")) == 200
    assert "thief at 127.0.0.1 is not a member any more" in server.stderr.read_text()
    fleet.submit("second", rounds=2, min_devices=2)
    assert fleet.covey("job", "watch", "second")["state"] == "finished"
    listed = fleet.covey("job", "show", "second")["device_list"]
    assert sorted(one["device"] for one in listed) == ["a", "b"]
    wait_for(lambda: "are refused: the certificate is revoked" in server.stderr.read_text(), "the thief's next try")
    # The broker's side only hangs up; the joining side says why, and the device says it once.
    told = devices["thief"].stderr
    wait_for(lambda: "the certificate of thief was revoked at" in told.read_text(), "the thief to be told")
    assert "this device is no member of its fleet any more" in told.read_text()
    assert devices["thief"].popen.poll() is None  # it stays, and tries again every half hour
    kept = fleet.config("thief").parent
    before = sorted(str(path) for path in kept.rglob("*") if "log" not in path.name)
    again = fleet.start("thief")
    assert again.popen.wait(300) == EnrolmentError.exit_code
    assert "was revoked at" in again.stderr.read_text()
    assert "covey fleet token thief" in again.stderr.read_text()
    assert sorted(str(path) for path in kept.rglob("*") if "log" not in path.name) == before

    # A server that is killed knows its members afterwards.
    server.popen.kill()
    server.popen.wait()
    fleet.open()
    wait_for(lambda: sorted(k for k, v in fleet.states().items() if v == "online") == ["a", "b"], "the members")


def test_strangers_are_not_heard(fleet: TrustedFleet, tmp_path: Path, tiny_bundle: Bundle) -> None:
    server = fleet.open()
    fleet.join("a")
    # Without TLS, without a certificate, and with one of another fleet.
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=30) as plain:
        plain.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
        plain.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: plain.recv(100), b""))
        assert not answer.startswith(b"\x20")  # a broker's welcome
    other = TrustedFleet(tmp_path / "other", tiny_bundle)
    try:
        other.open()
        other.join("a")
        anonymous = ssl.create_default_context(cafile=fleet.tls_files("a").ca_file)
        foreign = ssl.create_default_context(cafile=fleet.tls_files("a").ca_file)
        foreign.load_cert_chain(other.tls_files("a").cert_file or "", other.tls_files("a").key_file)
        for context in (anonymous, foreign):
            for port in (fleet.port, fleet.said["http_port"]):
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
                    pytest.raises((ssl.SSLError, ConnectionError)),
                    context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
                ):
                    wrapped.sendall(b"GET / HTTP/1.1\r\n\r\n")  # TLS 1.3: the refusal follows the handshake
                    if not wrapped.recv(100):
                        raise ConnectionError
    finally:
        other.stop()
    # A member that speaks in another one's name.
    fleet.join("b")
    address = BrokerAddress("127.0.0.1", fleet.port, tls=True, username=None, password=None)
    member = MqttTransport(address, "covey-default-b", tls=fleet.tls_files("b"), keep_session=False)
    try:
        forged = DeviceState(state="online", boot_id="x")
        member.publish("covey/v1/default/a/state", encode_message(forged), retain=True)
        wait_for(lambda: "in the name of a (unsigned)" in server.stderr.read_text(), "the refusal")
        status = fleet.covey("server", "status")
        assert (status["has_authority"], status["refused"]) == (True, {"a: unsigned": 1})
    finally:
        member.close()
    assert "a" not in fleet.states()


@pytest.mark.slow
def test_a_copied_card_is_put_in_quarantine(fleet: TrustedFleet, tmp_path: Path) -> None:
    server = fleet.open()
    fleet.join("a")
    fleet.join("b", 1)
    twin = fleet.config("a").parent
    fleet.start("a")
    fleet.start("b")
    wait_for(lambda: list(fleet.states().values()).count("online") == 2, "both devices")
    shutil.copytree(twin, fleet.root / "copy", ignore=shutil.ignore_patterns("covey-state"))
    copy = fleet.start("copy")

    def quarantined() -> str | None:
        listed = {one["device"]: one for one in fleet.covey("device", "list")["devices"]}
        assert listed["b"]["quarantine"] is None
        return listed["a"]["quarantine"]

    wait_for(quarantined, "the quarantine", 60.0)
    assert "two programs run as a: " in server.stderr.read_text()
    assert "covey device release a" in server.stderr.read_text()
    fleet.submit("job", rounds=2)
    assert fleet.covey("job", "watch", "job")["state"] == "finished"
    shown = fleet.covey("job", "show", "job")
    assert [one["device"] for one in shown["device_list"]] == ["b"]

    copy.popen.kill()
    copy.popen.wait()
    server.popen.kill()
    server.popen.wait()
    fleet.open()
    assert quarantined()
    assert fleet.covey("device", "release", "a")["state"] == "released"
    assert quarantined() is None
    fleet.covey("device", "release", "a", code=ConfigError.exit_code)
    wait_for(lambda: list(fleet.states().values()).count("online") == 2, "both devices")
    fleet.submit("second", rounds=1, min_devices=2)
    assert fleet.covey("job", "watch", "second")["state"] == "finished"


def test_without_an_authority_a_server_listens_on_this_machine_only(tmp_path: Path, tiny_bundle: Bundle) -> None:
    assert (default_listen(tmp_path), default_mqtt_port(tmp_path)) == ("127.0.0.1", 1883)
    TrustedFleet(tmp_path, tiny_bundle)
    assert (default_listen(tmp_path / "server"), default_mqtt_port(tmp_path / "server")) == ("0.0.0.0", 8883)  # noqa: S104 compared
