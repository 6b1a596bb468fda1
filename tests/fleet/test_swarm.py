"""``covey swarm`` as a process, against real brokers and a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, free_port, has_mosquitto, mosquitto, start_mosquitto, wait_for
from swarms import ended, result, submit, swarm
from trusted import TrustedFleet

from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(600)
needs_mosquitto = pytest.mark.skipif(
    not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"
)
DEVICES = 50


def online(server: Process) -> set[str]:
    return {e["device"] for e in server.events() if e.get("event") == "device" and e["state"] == "online"}


@needs_mosquitto
def test_a_swarm_runs_a_job_to_its_end_over_a_restart_of_the_server(fleet: Fleet) -> None:
    """The broker is another process than the server, which ends in mid-job and starts anew: nothing is lost."""
    with mosquitto(fleet.root / "broker") as port:
        fleet.port, fleet.external = port, True
        server = fleet.stay()
        server.wait_event("serving")
        submit(fleet, "load", rounds=6, min_devices=DEVICES, min_reports=DEVICES, cohort=DEVICES)
        running = swarm(fleet, "--devices", str(DEVICES), "--processes", "2")
        server.wait_event("round_closed", 2)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(60) == 0
        again = fleet.stay()
        wait_for(lambda: len(online(again)) == DEVICES, "whole fleet after the restart")
        assert wait_for(lambda: ended(again, "load"), "end of the job") == "finished"
        running.popen.send_signal(signal.SIGINT)
        found = result(running)
        listener = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{port}"), "listener", keep_session=False)
        try:  # the swarm has left, and the broker retains nothing of it
            for kind in ("birth", "state"):
                listener.subscribe(topic_for("default", "+", kind))
            listener.subscribe("mark")
            listener.publish("mark", b"x")
            topics = []
            while "mark" not in topics:
                event = listener.receive(30)
                assert event is not None
                topics += [event.topic] if isinstance(event, Message) else []
        finally:
            listener.close()
        assert topics == ["mark"]
    assert (found["devices"], found["devices_connected"]) == (DEVICES, DEVICES)
    assert found["plans"] == found["reports"]["taken"] == 6 * DEVICES
    assert found["lost_reports"] == found["lost_connections"] == found["messages_refused"] == 0
    assert found["hellos"] >= 2 * DEVICES
    assert list(found["proved"].values()) == [DEVICES]
    assert 0 < found["round_trip_s"]["p50"] <= found["round_trip_s"]["p99"] <= found["round_trip_s"]["most"]
    assert found["bytes_up"] > 0 < found["bytes_down"]
    said = running.stderr.read_text()
    assert f"{DEVICES} of {DEVICES} connected" in said


def test_a_job_for_everyone_gives_a_swarm_no_work(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    submit(fleet, "real", devices="all", rounds=1, min_devices=1, min_reports=1)
    submit(fleet, "load", rounds=1, min_devices=5, min_reports=5, cohort=5)
    running = swarm(fleet, "--devices", "5", "--tags", "kitchen")
    assert wait_for(lambda: ended(server, "load"), "end of the load test") == "finished"
    listed = fleet.covey("device", "list")["devices"]
    assert {one["device"] for one in listed} == {f"swarm-{index:05}" for index in range(1, 6)}
    running.popen.send_signal(signal.SIGINT)
    assert result(running)["plans"] == 5
    opened = [event["job"] for event in server.events() if event.get("event") == "round_opened"]
    assert opened == ["load"]
    assert {one["job"]: one["state"] for one in fleet.covey("job", "list")["jobs"]}["real"] == "running"
    refused = fleet.covey("rollout", "start", "adapter", "load", "--groups", "100%", code=11)
    assert "covey swarm" in refused["error"]


def test_members_of_a_fleet_with_an_authority_sign_and_are_let_in(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = TrustedFleet(tmp_path, tiny_bundle)
    try:
        server = fleet.open()
        folder = str(tmp_path / "members")
        made = fleet.covey("swarm", "--make-members", "--devices", "10", "--members", folder)
        assert (made["first"], made["last"]) == ("swarm-00001", "swarm-00010")
        assert (tmp_path / "members" / "swarm-00001-key.pem").stat().st_mode & 0o077 == 0
        submit(fleet, "load", rounds=2, min_devices=10, min_reports=10, cohort=10)
        flags = ("--devices", "10", "--members", folder)
        running = swarm(fleet, *flags, broker=f"mqtts://127.0.0.1:{fleet.said['mqtt_port']}")
        assert wait_for(lambda: ended(server, "load"), "end of the job") == "finished"
        running.popen.send_signal(signal.SIGINT)
        found = result(running)
        assert found["reports"] == {"taken": 20}
        assert found["lost_reports"] == found["messages_refused"] == 0
        # once more, while the server remembers the first: the numbers of the messages go on
        again = swarm(fleet, *flags, "--for", "600s", broker=f"mqtts://127.0.0.1:{fleet.said['mqtt_port']}")
        wait_for(lambda: list(fleet.states().values()) == ["online"] * 10, "all of them again")
        again.popen.send_signal(signal.SIGINT)
        assert result(again)["messages_refused"] == 0
        few = swarm(fleet, "--devices", "11", "--members", folder)
        assert "no certificate of swarm-00011" in result(few, ConfigError.exit_code)["error"]
    finally:
        fleet.stop()


@needs_mosquitto
def test_a_broker_at_its_limit_is_told_from_a_wrong_password(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, 0, external=True)
    full = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_connections 30\n"
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "pi", "secret"], check=True, capture_output=True)
    closed = f"listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
    try:
        with mosquitto(tmp_path / "full", full) as port:
            found = result(
                swarm(fleet, "--devices", "40", "--processes", "1", "--for", "6s", broker=f"mqtt://127.0.0.1:{port}"),
                NetworkError.exit_code,
            )
            assert 30 <= found["devices_connected"] < 40  # mosquitto 2.0.11 lets one more in
            assert set(found["refused_logins"]) == {"unavailable"}
            (cause,) = found["causes"]
            assert "as many as it may take" in cause["finding"]
            assert "max_connections" in cause["remedy"]
        with mosquitto(tmp_path / "closed", closed) as port:
            said = result(
                swarm(fleet, "--devices", "5", broker=f"mqtt://pi:wrong@127.0.0.1:{port}"), NetworkError.exit_code
            )
            assert "refuses the user 'pi' or its password" in said["error"]
            assert "wrong" not in said["error"] + said["hint"]
    finally:
        fleet.stop()


@pytest.mark.slow
@needs_mosquitto
def test_a_swarm_comes_back_to_a_broker_that_restarts(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=True)
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {fleet.port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    try:
        running = swarm(fleet, "--devices", "20")
        broker = start_mosquitto(config)  # after the swarm: it waits for its broker
        try:
            wait_for(lambda: "20 of 20 connected" in running.stderr.read_text(), "all connected")
        finally:
            broker.terminate()
            broker.wait()
        wait_for(lambda: " 0 of 20 connected" in running.stderr.read_text().splitlines()[-1], "all gone")
        broker = start_mosquitto(config)
        try:
            wait_for(lambda: "20 of 20 connected" in running.stderr.read_text().splitlines()[-1], "all back")
            running.popen.send_signal(signal.SIGTERM)
            found = result(running)
        finally:
            broker.terminate()
            broker.wait()
    finally:
        fleet.stop()
    assert (found["logins"], found["lost_connections"]) == (40, 20)
    assert set(found["refused_logins"]) == {"refused"}


def test_too_few_open_files_are_said_with_what_to_do(tmp_path: Path) -> None:
    command = f"ulimit -n 200; exec {sys.executable} -m server.cli swarm --devices 500 --processes 2"
    done = subprocess.run(
        ["bash", "-c", f"{command} --broker mqtt://127.0.0.1:1 --format json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == ConfigError.exit_code
    said = json.loads(done.stdout)
    assert said["error"] == "a process with 250 sessions needs 350 open files, and its limit is 200"
    assert all(words in said["hint"] for words in ("ulimit -Hn 350", "LimitNOFILE=350", "fs.nr_open", "--processes"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--devices", "0", "--broker", "mqtt://x"), "--devices 0"),
        (("--devices", "2"), "no broker"),
        (("--devices", "2", "--make-members"), "--members DIR"),
        (("--devices", "2", "--broker", "http://x"), "is not an address"),
        (("--devices", "2", "--broker", "mqtt://x", "--for", "soon"), "'soon' is not a time"),
        (("--devices", "2", "--broker", "mqtt://x", "--rate", "0"), "--rate"),
        (("--devices", "2", "--broker", "mqtt://x", "--members", "nowhere"), "no devices of a swarm"),
    ],
)
def test_wrong_flags_are_named(flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from server.cli import main

    assert main(["swarm", *flags]) == ConfigError.exit_code
    assert words in capsys.readouterr().err
