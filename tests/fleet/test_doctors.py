"""``covey doctor`` and ``covey-edge doctor`` on a signed fleet with TLS: they do what serve and run do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port, has_mosquitto, mosquitto, wait_for
from trusted import TrustedFleet

from edge_runtime.errors import EnrolmentError, NetworkError
from server.trust.mosquitto import ACCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

    Checks = dict[str, dict[str, Any]]

pytestmark = pytest.mark.timeout(900)
needs_mosquitto = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def edge_doctor(fleet: TrustedFleet, name: str) -> tuple[int, Checks]:
    command = ["doctor", "--config", str(fleet.config(name)), "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime.cli", *command], capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, {one["check"]: one for one in json.loads(done.stdout)["checks"]}


def doctor(fleet: TrustedFleet, *flags: str, code: int = 0) -> Checks:
    ports = ["--http-port", "0", "--join-port", "0", "--listen", "127.0.0.1"]
    return {one["check"]: one for one in fleet.covey("doctor", *ports, *flags, code=code)["checks"]}


def statuses(checks: Checks, *names: str) -> dict[str, str]:
    return {name: checks[name]["status"] for name in names if name in checks}


@contextlib.contextmanager
def broker(fleet: TrustedFleet, change: Callable[[str], str]) -> Iterator[str]:
    """Run mosquitto as covey fleet mosquitto sets it up, with a change to its access list; yield its address."""
    folder = fleet.root / "broker"
    fleet.covey("fleet", "mosquitto", "--out", str(folder), "--host", "127.0.0.1", "--port", str(fleet.port))
    access = folder / ACCESS
    changed = change(access.read_text())
    access.write_text(changed)
    text = (folder / "mosquitto.conf").read_text().replace(f"listener {fleet.port}", "listener {port}")
    with mosquitto(fleet.root / f"run-{free_port()}", text) as port:
        yield f"mqtts://127.0.0.1:{port}"


def at(fleet: TrustedFleet, name: str, url: str) -> None:
    """Let a device that has joined use another broker."""
    config = fleet.config(name)
    lines = [f'broker = "{url}"' if line.startswith("broker") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_a_fleet_behind_the_embedded_broker_is_healthy_until_a_device_is_revoked(fleet: TrustedFleet) -> None:
    fleet.open()
    fleet.join("a")
    wait_for(lambda: fleet.covey("server", "status")["epoch"], "the hello")
    code, found = edge_doctor(fleet, "a")
    asked = ("membership", "broker", "round trip", "hello", "server", "signing")
    assert (code, statuses(found, *asked)) == (0, dict.fromkeys(asked, "ok"))
    assert "signed with key" in found["hello"]["found"]
    found = doctor(fleet)
    asked = ("server", "broker", "http side", "joining side")
    assert statuses(found, *asked) == dict.fromkeys(asked, "ok")

    fleet.covey("device", "revoke", "a")
    code, found = edge_doctor(fleet, "a")
    assert code == EnrolmentError.exit_code
    assert "was revoked at" in found["membership"]["found"]
    assert "covey fleet token a" in found["membership"]["advice"]
    assert "the certificate was revoked" in found["server"]["found"]


class TestThroughMosquitto:
    """Access lists that swallow publishes; mosquitto confirms them."""

    pytestmark = needs_mosquitto

    def test_nothing_is_in_the_way_and_then_something_is(self, fleet: TrustedFleet) -> None:
        own = "covey/v1/default"
        with broker(fleet, lambda text: text) as url:
            server = fleet.stay("--broker", url, "--join-port", "0")
            fleet.said = server.wait_event("serving")
            fleet.join("a")
            wait_for(lambda: fleet.covey("server", "status")["epoch"], "the hello")
            code, found = edge_doctor(fleet, "a")
            asked = ("membership", "broker", "round trip", "hello", "server")
            assert (code, statuses(found, *asked)) == (0, dict.fromkeys(asked, "ok"))
            found = doctor(fleet, "--broker", url)
            asked = ("server", "broker", "round trip", "http side", "joining side")
            assert statuses(found, *asked) == dict.fromkeys(asked, "ok")
            server.popen.kill()
            server.popen.wait()

        # The device may not publish its reports, and not read the hello.
        def without_report(text: str) -> str:
            return "\n".join(line for line in text.splitlines() if not line.endswith(("%u/report", "/hello"))) + "\n"

        with broker(fleet, without_report) as url:
            at(fleet, "a", url)
            code, found = edge_doctor(fleet, "a")
            assert code == NetworkError.exit_code
            assert f"publish on {own}/a/report" in found["broker"]["found"]
            assert f"topic write {own}/a/report" in found["broker"]["advice"]
            assert (found["round trip"]["status"], found["hello"]["status"]) == ("ok", "warning")
            assert "access list" in found["hello"]["advice"]
            refused = fleet.start("a")
            assert refused.popen.wait(300) == NetworkError.exit_code  # run asks the same, and says the same
            assert f"publish on {own}/a/report" in refused.stderr.read_text()
            assert statuses(doctor(fleet, "--broker", url), "broker", "round trip") == {
                "broker": "ok",
                "round trip": "ok",
            }

        # The server may read everything, and write nothing.
        with broker(fleet, lambda text: text.replace(f"topic readwrite {own}/#", f"topic read {own}/#")) as url:
            found = doctor(fleet, "--broker", url, code=NetworkError.exit_code)
            for topic in ("hello", "servers", "covey-check/plan", "covey-check/report/ack"):
                assert f"publish on {own}/{topic}" in found["broker"]["found"]
            assert found["round trip"]["status"] == "problem"
            at(fleet, "a", url)
            assert edge_doctor(fleet, "a")[1]["hello"]["status"] == "warning"

        # Only the probe topic is closed: the device works, and is told what it lacks.
        with broker(fleet, lambda text: text.replace("pattern write covey/v1/default/%u/probe\n", "")) as url:
            at(fleet, "a", url)
            code, found = edge_doctor(fleet, "a")
            assert statuses(found, "broker", "round trip") == {"broker": "ok", "round trip": "warning"}

    def test_a_hello_that_is_not_the_servers_is_a_problem(self, fleet: TrustedFleet) -> None:
        with broker(fleet, lambda text: text + "pattern write covey/v1/default/hello\n") as url:
            server = fleet.stay("--broker", url, "--join-port", "0")
            fleet.said = server.wait_event("serving")
            for name in "ab":
                fleet.join(name)
            server.popen.kill()
            server.popen.wait()
            own = fleet.tls_files("b")
            port = url.rpartition(":")[2]
            files = ["--cafile", own.ca_file or "", "--cert", own.cert_file or "", "--key", own.key_file or ""]
            _publish(port, files, "covey/v1/default/hello")
            code, found = edge_doctor(fleet, "a")
            assert found["hello"]["status"] == "problem"
            assert "unsigned" in found["hello"]["found"] or "malformed" in found["hello"]["found"]
            assert code != 0


def _publish(port: str, files: list[str], topic: str) -> None:
    """Publish a retained word as a member that speaks no protocol."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="liar")
    client.tls_set(ca_certs=files[1], certfile=files[3], keyfile=files[5])
    client.connect("127.0.0.1", int(port))
    client.loop_start()
    client.publish(topic, b"\x81\xa4type\xa5hello", qos=1, retain=True).wait_for_publish(60)
    client.disconnect()
    client.loop_stop()
