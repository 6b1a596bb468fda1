"""``covey fleet mosquitto``: a real mosquitto with the configuration that was written."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from fleets import free_port, has_mosquitto, wait_for
from joining import joined, joining_site
from trusted import TrustedFleet, broker

from edge_runtime.errors import ConfigError, EnrolmentError, StorageError
from edge_runtime.network.access import check_access
from edge_runtime.network.address import BrokerAddress, TlsFiles
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from server.serving.options import ServeOptions
from server.serving.revocations import Kept, keep_revoked
from server.serving.security import open_security
from server.trust.mosquitto import ACCESS, REVOKED, Revoked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


def access(fleet: TrustedFleet, port: int, name: str, tls: TlsFiles, reads: list[str], writes: list[str]) -> list[str]:
    address = BrokerAddress("127.0.0.1", port, tls=True, username=None, password=None)
    own = "covey/v1/default"
    found = check_access(
        address, f"probe-{name}", tls, reads=[f"{own}/{t}" for t in reads], writes=[f"{own}/{t}" for t in writes]
    )
    return [cause.finding for cause in found.causes]


def echoes(transport: MqttTransport, topic: str, timeout_s: float) -> bool:
    """Whether a message on a topic comes back to a member that stays connected."""
    transport.subscribe(topic)
    transport.publish(topic, b"")
    ends_at = time.monotonic() + timeout_s
    while (left_s := ends_at - time.monotonic()) > 0:
        if isinstance(transport.receive(left_s), Message):
            return True
    return False


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def test_a_job_through_mosquitto_and_who_may_do_what(fleet: TrustedFleet) -> None:
    with broker(fleet) as said:
        port = said["port"]
        folder = fleet.root / "broker"
        server = fleet.stay("--broker", f"mqtts://127.0.0.1:{port}", "--join-port", "0", "--mosquitto", str(folder))
        fleet.said = server.wait_event("serving")
        for seed, name in enumerate("ab"):
            fleet.join(name, seed)
        devices = [fleet.start(name) for name in "ab"]
        wait_for(lambda: list(fleet.states().values()).count("online") == 2, "two devices")
        fleet.submit("job", rounds=2, min_devices=2)
        assert fleet.covey("job", "watch", "job")["state"] == "finished"
        assert "access list" not in server.stderr.read_text()

        own = fleet.tls_files("a")
        reads, writes = (
            ["hello", "a/plan", "a/report/ack", "a/log/get", "a/release", "a/predict"],
            ["a/birth", "a/state", "a/report", "a/log", "a/released", "a/predicted"],
        )
        assert access(fleet, port, "a", own, reads, writes) == []
        for theirs in ("b/report", "a/plan", "hello", "servers"):
            (finding,) = access(fleet, port, "a", own, [], [theirs])
            assert theirs in finding
        assert access(fleet, port, "a", TlsFiles(own.ca_file), reads, []) != []
        address = BrokerAddress("127.0.0.1", port, tls=True, username=None, password=None)
        thief = MqttTransport(address, "covey-default-a-thief", tls=own, keep_session=False)
        assert echoes(thief, "covey/v1/default/a/probe", 60.0)

        assert fleet.covey("device", "revoke", "a")["certificates"] == 1
        # The server writes mosquitto's files anew, and mosquitto reads them on SIGHUP: who is connected is cut off ...
        wait_for(lambda: "user a\ntopic deny #" in (folder / ACCESS).read_text(), "the new access list")
        wait_for(lambda: "Revoked Certificates:" in _openssl("crl", folder / REVOKED), "the new list of certificates")
        _process_of(fleet.root / "run" / "mosquitto.conf").send_signal(signal.SIGHUP)
        wait_for(lambda: access(fleet, port, "a", own, ["a/plan"], []) != [], "the broker to refuse a", 60.0)
        assert not echoes(thief, "covey/v1/default/a/probe", 1.0)
        thief.close()
        assert access(fleet, port, "b", fleet.tls_files("b"), ["b/plan"], ["b/report"]) == []
        fleet.submit("second", rounds=1, min_devices=1)
        assert fleet.covey("job", "watch", "second")["state"] == "finished"
        # ... and is told why with its next connection.
        devices[0].popen.send_signal(signal.SIGTERM)
        devices[0].popen.wait(60)
        again = fleet.start("a")
        assert again.popen.wait(300) == EnrolmentError.exit_code
        assert "was revoked at" in again.stderr.read_text()
        devices[1].popen.kill()
        devices[1].popen.wait()
    with broker(fleet) as said:
        assert said["revoked"] == 1
        assert access(fleet, said["port"], "b", fleet.tls_files("b"), ["b/plan"], ["b/report"]) == []
        assert access(fleet, said["port"], "a", own, ["a/plan"], []) != []


def test_revoked_devices_are_written_once_for_each_change_and_again_after_a_failure(tmp_path: Path) -> None:
    with joining_site(tmp_path) as site:
        for name in ("a", "b"):
            joined(site.token(name), tmp_path / name / "edge.toml")
        written: list[Revoked] = []
        now, is_full = [0.0], [False]

        def write(revoked: Revoked) -> None:
            if is_full[0]:
                raise StorageError("disk full")
            written.append(revoked)

        kept = Kept(write, lambda: now[0])
        for _ in range(3):
            kept.refresh(site.ledger, "default")
        assert written == [Revoked()]
        joined(site.token("c"), tmp_path / "c" / "edge.toml")  # a change that revokes nobody
        kept.refresh(site.ledger, "default")
        assert written == [Revoked()]
        is_full[0] = True
        site.ledger.revoke_device("default", "a", "lost")
        with pytest.raises(StorageError):
            kept.refresh(site.ledger, "default")
        kept.refresh(site.ledger, "default")  # not at each turn
        is_full[0], now[0] = False, 31.0
        kept.refresh(site.ledger, "default")
        assert written[1].names == {"a"}
        assert len(written[1].serials) == 1
        # A name that has joined again is let in, its old certificate is not.
        joined(site.token("a"), tmp_path / "again" / "edge.toml")
        kept.refresh(site.ledger, "default")
        assert (written[2].names, written[2].serials) == (frozenset(), written[1].serials)


def test_a_folder_that_is_none_of_mosquittos_is_refused_when_the_server_starts(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state") as site:
        for options, what in (
            (ServeOptions(tmp_path / "state", mosquitto=tmp_path), "broker of its own"),
            (
                ServeOptions(tmp_path / "state", broker="mqtts://x:8883", mosquitto=tmp_path),
                "there is no mosquitto.conf",
            ),
        ):
            with pytest.raises(ConfigError, match=what):
                keep_revoked(options, open_security(options, site.ledger), site.ledger)
        with pytest.raises(ConfigError, match="broker of its own"):
            keep_revoked(ServeOptions(tmp_path, broker="mqtts://x:8883", mosquitto=tmp_path), None, site.ledger)


def _openssl(kind: str, path: Path) -> str:
    command = ["openssl", kind, "-in", str(path), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _process_of(config: Path) -> psutil.Process:
    return next(p for p in psutil.process_iter(["cmdline"]) if str(config) in (p.info["cmdline"] or []))


def test_the_configuration_needs_no_hand(fleet: TrustedFleet, tmp_path: Path) -> None:
    """What is written is all that mosquitto needs, and its key can be read by its owner only."""
    said = fleet.covey("fleet", "mosquitto", "--out", str(tmp_path / "out"), "--port", str(free_port()))
    files = {Path(path).name: Path(path) for path in said["files"]}
    assert files["broker-key.pem"].stat().st_mode & 0o077 == 0
    text = files["mosquitto.conf"].read_text()
    assert "\nset_tcp_nodelay true\n" in text  # tests/edge/test_mqtt_small_packets.py
    named = [line.split()[1] for line in text.splitlines() if line.startswith(("ca", "cert", "key", "crl", "acl_"))]
    assert {Path(path).name for path in named} == set(files) - {"mosquitto.conf"}
    before = files["broker-key.pem"].read_bytes()
    fleet.covey("fleet", "mosquitto", "--out", str(tmp_path / "out"))
    assert files["broker-key.pem"].read_bytes() == before
    fleet.covey("fleet", "mosquitto", "--out", str(tmp_path / "out"), "--port", "0", code=ConfigError.exit_code)
    checked = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", str(files["ca.pem"]), str(files["broker.pem"])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr
