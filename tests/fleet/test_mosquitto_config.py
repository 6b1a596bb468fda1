"""``covey fleet mosquitto``: a real mosquitto with the configuration that was written."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port, has_mosquitto, mosquitto, wait_for
from trusted import TrustedFleet

from edge_runtime.errors import ConfigError
from edge_runtime.network.access import check_access
from edge_runtime.network.address import BrokerAddress, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


@contextlib.contextmanager
def broker(fleet: TrustedFleet) -> Iterator[dict[str, Any]]:
    """Write the configuration anew and run mosquitto with it."""
    folder = fleet.root / "broker"
    said = fleet.covey("fleet", "mosquitto", "--out", str(folder), "--host", "127.0.0.1", "--port", str(fleet.port))
    text = (folder / "mosquitto.conf").read_text().replace("{", "{{").replace("}", "}}")
    with mosquitto(fleet.root / "run", text.replace(f"listener {fleet.port}", "listener {port}")) as port:
        yield {**said, "port": port}


def access(fleet: TrustedFleet, port: int, name: str, tls: TlsFiles, reads: list[str], writes: list[str]) -> list[str]:
    address = BrokerAddress("127.0.0.1", port, tls=True, username=None, password=None)
    own = "covey/v1/default"
    found = check_access(
        address, f"probe-{name}", tls, reads=[f"{own}/{t}" for t in reads], writes=[f"{own}/{t}" for t in writes]
    )
    return [cause.finding for cause in found.causes]


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def test_a_job_through_mosquitto_and_who_may_do_what(fleet: TrustedFleet) -> None:
    with broker(fleet) as said:
        port = said["port"]
        server = fleet.stay("--broker", f"mqtts://127.0.0.1:{port}", "--join-port", "0")
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
            ["hello", "a/plan", "a/report/ack", "a/log/get", "a/release"],
            ["a/birth", "a/state", "a/report", "a/log", "a/released"],
        )
        assert access(fleet, port, "a", own, reads, writes) == []
        for theirs in ("b/report", "a/plan", "hello", "servers"):
            (finding,) = access(fleet, port, "a", own, [], [theirs])
            assert theirs in finding
        assert access(fleet, port, "a", TlsFiles(own.ca_file), reads, []) != []
        assert fleet.covey("device", "revoke", "a")["certificates"] == 1
        for device in devices:
            device.popen.kill()
            device.popen.wait()
    with broker(fleet) as said:
        assert said["revoked"] == 1
        assert access(fleet, said["port"], "b", fleet.tls_files("b"), ["b/plan"], ["b/report"]) == []
        assert access(fleet, said["port"], "a", own, ["a/plan"], []) != []


def test_the_configuration_needs_no_hand(fleet: TrustedFleet, tmp_path: Path) -> None:
    """What is written is all that mosquitto needs, and its key can be read by its owner only."""
    said = fleet.covey("fleet", "mosquitto", "--out", str(tmp_path / "out"), "--port", str(free_port()))
    files = {Path(path).name: Path(path) for path in said["files"]}
    assert files["broker-key.pem"].stat().st_mode & 0o077 == 0
    text = files["mosquitto.conf"].read_text()
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
