"""The whole system in real processes over real brokers, with things killed and cut on purpose."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import Fleet, free_port, has_mosquitto, mosquitto, wait_for, write_job

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.reports import DeviceReport, ReportAck, RoundReport
from edge_runtime.protocol.topics import topic_for
from server.job.epsilon import device_epsilon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)
NEEDS_MOSQUITTO = pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=[pytest.mark.mosquitto, NEEDS_MOSQUITTO])])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    """A fleet on the embedded broker, and on mosquitto."""
    if request.param == "mosquitto":
        with mosquitto(tmp_path / "mosquitto") as port:
            made = Fleet(tmp_path, tiny_bundle, port, external=True)
            yield made
            made.stop()
    else:
        made = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
        yield made
        made.stop()


@pytest.fixture
def embedded_fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    """A fleet on the embedded broker only."""
    made = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    yield made
    made.stop()


def covey(fleet: Fleet, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "server.cli", *words, "--state-dir", str(fleet.state_dir), "--format", "json"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def test_three_devices_finish_a_job(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=4, min_devices=3))
    devices = [fleet.device(f"device-{index}", index) for index in range(3)]
    result = server.result()
    assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 3
    assert (result["rounds"], result["devices"], result["reports"]) == (4, 3, 12)
    assert result["bytes_up_per_device_round"] <= 2 * 4 * 4 + 512
    assert len([e for e in server.events() if e["event"] == "evaluated"]) == 5
    shown = covey(fleet, "job", "show", "job")
    assert shown["adapter_sha256"] == result["adapter_sha256"]
    assert [row["reports"] for row in shown["round_list"]] == [3, 3, 3, 3]
    assert [job["state"] for job in covey(fleet, "job", "list")["jobs"]] == ["finished"]
    listed = covey(fleet, "device", "list")["devices"]
    assert [(d["device"], d["reports"], d["adapter_sha256"]) for d in listed] == [
        (f"device-{index}", 4, result["adapter_sha256"]) for index in range(3)
    ]
    assert [device["rows"] for device in listed] == [24, 28, 32]


@pytest.mark.parametrize("method", ["decomfl", "fedkseed"])
def test_other_methods_with_momentum_end_on_the_same_bits(embedded_fleet: Fleet, method: str) -> None:
    """A device that is chosen now and then catches up by logs that hold the whole cohort's movement."""
    fleet = embedded_fleet
    step = {"back_perturbations": 1, "front_perturbations": 2}
    job = write_job(
        fleet.root, step, method=method, server_momentum=0.8, rounds=8, min_devices=3, cohort=1, weighting="uniform"
    )
    server = fleet.serve(job)
    devices = [fleet.device(f"device-{index}", index) for index in range(3)]
    result = server.result()
    assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 3
    assert "replay failed" not in "".join(device.stderr.read_text() for device in devices)
    assert result["epsilon"] is None


@pytest.mark.slow
def test_a_private_adaptive_job(embedded_fleet: Fleet) -> None:
    fleet = embedded_fleet
    job = write_job(
        fleet.root,
        rounds=4,
        min_devices=2,
        weighting="uniform",
        privacy={"clip": 1.0, "noise_multiplier": 40.0, "delta": 1e-5},
        adaptive={"split": True, "most_back_perturbations": 16},
    )
    server = fleet.serve(job)
    devices = [fleet.device(f"device-{index}", index, least_noise_multiplier=40.0) for index in range(2)]
    fleet.device("careful", 2, least_noise_multiplier=41.0)
    result = server.result()
    assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 2
    rows = covey(fleet, "job", "show", "job")["round_list"]
    assert {row["split"] for row in rows[:2]} == {1, 2}
    releases = sum(2 * row["back_perturbations"] for row in rows)
    assert result["epsilon"] == pytest.approx(device_epsilon(releases, 40.0, 1e-5))
    assert [e["loss"] for e in server.events() if e["event"] == "report"] == [None] * result["reports"]
    failed = [e for e in server.events() if e["event"] == "offer_failed"]
    assert all(e["device"] == "careful" and "asks for 41 or more" in e["reason"] for e in failed)


def test_a_device_killed_in_mid_round_costs_its_report_not_the_round(fleet: Fleet) -> None:
    job = write_job(fleet.root, rounds=2, steps=60, min_devices=3, min_reports=2)
    server = fleet.serve(job)
    devices = [fleet.device(f"device-{index}", index) for index in range(3)]
    server.wait_event("round_opened")
    victim = devices[0]
    wait_busy(server, "device-0")
    victim.popen.send_signal(signal.SIGKILL)
    result = server.result()
    failed = [e for e in server.events() if e["event"] == "offer_failed"]
    assert [(e["device"], e["reason"]) for e in failed] == [("device-0", "lost")]
    assert result["rounds"] == 2
    assert result["reports"] == 4
    assert {device.result()["adapter_sha256"] for device in devices[1:]} == {result["adapter_sha256"]}


def wait_busy(server: Any, name: str) -> None:
    """Wait until a device works on a plan."""

    def busy() -> bool:
        states = [e for e in server.events() if e["event"] == "device" and e["device"] == name]
        return bool(states) and states[-1]["state"] == "busy"

    wait_for(busy, f"{name} at work")


def test_a_device_that_joins_late_takes_part(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=8, steps=40, min_devices=1))
    first = fleet.device("device-0", 0)
    server.wait_event("round_closed")
    late = fleet.device("device-1", 1)
    result = server.result()
    assert first.result()["adapter_sha256"] == late.result()["adapter_sha256"] == result["adapter_sha256"]
    reports = {row["device"]: row["reports"] for row in covey(fleet, "device", "list")["devices"]}
    assert reports["device-0"] == 8
    assert 1 <= reports["device-1"] < 8


def test_a_device_killed_and_started_again_takes_up_its_work(embedded_fleet: Fleet) -> None:
    fleet = embedded_fleet
    server = fleet.serve(write_job(fleet.root, rounds=3, steps=60, min_devices=2, min_reports=2))
    other, victim = fleet.device("device-0", 0), fleet.device("device-1", 1)
    wait_busy(server, "device-1")
    victim.popen.kill()
    again = fleet.device("device-1", 1)
    result = server.result()
    assert other.result()["adapter_sha256"] == again.result()["adapter_sha256"] == result["adapter_sha256"]
    assert result["rounds"] == 3


def test_a_server_killed_with_9_resumes_to_the_same_adapter(embedded_fleet: Fleet, tmp_path: Path) -> None:
    """The same job, once in peace and once with kill -9 in the middle of rounds, gives the same hash."""
    hashes = []
    for kills in (0, 2):
        root = tmp_path / f"run-{kills}"
        root.mkdir()
        fleet = Fleet(root, embedded_fleet.bundle, free_port(), external=False)
        try:
            job = write_job(root, rounds=6, steps=20, min_devices=2, min_reports=2)
            server = fleet.serve(job)
            devices = [fleet.device(f"device-{index}", index) for index in range(2)]
            for _ in range(kills):
                server.wait_event("report", 3)
                server.popen.kill()
                server.popen.wait()
                server = fleet.serve(job)
            result = server.result(timeout_s=150)
            assert {device.result()["adapter_sha256"] for device in devices} == {result["adapter_sha256"]}
            assert (result["rounds"], result["reports"]) == (6, 12)
            hashes.append(result["adapter_sha256"])
        finally:
            fleet.stop()
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.mosquitto
@NEEDS_MOSQUITTO
def test_a_duplicate_report_changes_nothing(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Somebody sends every report of device-0 three times more, changed and unchanged, and reports of their own."""
    with mosquitto(tmp_path / "mosquitto") as port:
        fleet = Fleet(tmp_path, tiny_bundle, port, external=True)
        echo = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{port}"), "echo")
        topic = topic_for("default", "device-0", "report")
        echo.subscribe(topic)
        echo.subscribe(topic_for("default", "device-0", "report/ack"))
        try:
            server = fleet.serve(write_job(fleet.root, rounds=3, min_devices=2, min_reports=2))
            devices = [fleet.device(f"device-{index}", index) for index in range(2)]
            outcomes, seen = [], set[bytes]()
            while server.popen.poll() is None:
                event = echo.receive(0.2)
                if not isinstance(event, Message) or event.payload == b"noise":
                    continue
                if event.topic != topic:
                    outcomes.append(decode_message(event.payload, ReportAck).outcome)
                    continue
                report: Any = decode_message(event.payload, DeviceReport)  # type: ignore[arg-type]
                if isinstance(report, RoundReport) and event.payload not in seen:
                    spoiled = msgspec.structs.replace(report, scalars=b"\0" * len(report.scalars))
                    for copy in (event.payload, encode_message(spoiled)):
                        seen.add(copy)
                        echo.publish(topic, copy)
                    echo.publish(topic, b"noise")
                    echo.publish(topic, encode_message(msgspec.structs.replace(report, device="device-1")))
            result = server.result()
            assert {device.result()["adapter_sha256"] for device in devices} == {result["adapter_sha256"]}
            assert result["reports"] == 6
            assert outcomes.count("taken") == 3
            assert set(outcomes) <= {"taken", "duplicate", "late"}
            assert len(outcomes) > 3
        finally:
            echo.close()
            fleet.stop()
        quiet_root = tmp_path / "quiet"
        quiet_root.mkdir()
        quiet = Fleet(quiet_root, tiny_bundle, free_port(), external=False)
        try:
            server = quiet.serve(write_job(quiet.root, rounds=3, min_devices=2, min_reports=2))
            for index in range(2):
                quiet.device(f"device-{index}", index)
            assert server.result()["adapter_sha256"] == result["adapter_sha256"]
        finally:
            quiet.stop()


@pytest.mark.mosquitto
@NEEDS_MOSQUITTO
def test_a_job_runs_over_tls_with_a_certificate_for_each_member(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Real TLS both ways: without the right certificate nobody gets in."""
    certificates = make_certificates(tmp_path / "tls", ["broker", "server", "device-0"])
    listener = (
        "listener {{port}} 127.0.0.1\nrequire_certificate true\nuse_identity_as_username true\n"
        "allow_anonymous false\ncafile {ca}\ncertfile {broker}.pem\nkeyfile {broker}.key\n"
    ).format(ca=certificates / "ca.pem", broker=certificates / "broker")
    with mosquitto(tmp_path / "mosquitto", listener) as port:
        fleet = Fleet(tmp_path, tiny_bundle, port, external=True)
        try:
            url = f"mqtts://localhost:{port}"
            flags = ["--broker", url, "--tls-ca", str(certificates / "ca.pem")]
            flags += ["--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key")]
            server = fleet.serve(write_job(fleet.root, rounds=2), *flags)
            ca = {"ca_file": str(certificates / "ca.pem")}
            own = ca | {f"{part}_file": str(certificates / f"device-0.{end}") for part, end in PARTS}
            stranger = fleet.device("stranger", 1, broker=url, tls=ca, connect_timeout_s=3.0)
            device = fleet.device("device-0", 0, broker=url, tls=own)
            assert device.result()["adapter_sha256"] == server.result()["adapter_sha256"]
            assert stranger.popen.wait(60) == 7
            assert "no connection to the broker" in stranger.stderr.read_text()
        finally:
            fleet.stop()


PARTS = (("cert", "pem"), ("key", "key"))


def make_certificates(folder: Path, names: list[str]) -> Path:
    """Make an authority and a certificate for each name, with openssl."""
    folder.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    for name in names:
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text("subjectAltName=DNS:localhost\n")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    for path in folder.iterdir():
        path.chmod(0o644)  # mosquitto gives up root before it reads its key
    folder.chmod(0o755)
    return folder
