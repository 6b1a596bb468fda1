"""Connections that break later, and the commands: what run, doctor and serve print, against a real mosquitto."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from brokers import PASSWORD, USER, silent_port, ssh_port
from certificates import Authority
from fleets import Fleet, has_mosquitto, mosquitto, wait_for, write_job

from edge_runtime import cli
from edge_runtime.network.address import TlsFiles, parse_broker
from edge_runtime.network.mqtt import MqttTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto"),
]
LISTENER = "listener {port} 127.0.0.1\nallow_anonymous true\n"


def said(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """Wait for a line of the log and return it."""
    return str(wait_for(lambda: next((r.getMessage() for r in caplog.records if words in r.getMessage()), None), words))


def test_a_message_that_the_broker_finds_too_large_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mosquitto(tmp_path / "mosquitto", LISTENER + "max_packet_size 20000\n") as port:
        transport = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{port}"), "covey-default-pi", connect_timeout_s=20.0)
        transport.publish("covey/v1/default/pi/report", bytes(60_000))
        line = said(caplog, "whenever a message of 60000 bytes is sent")
        assert "max_packet_size" in line
        assert "Unspecified" not in caplog.text
        transport.close()


def test_two_programs_with_one_name_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mosquitto(tmp_path / "mosquitto") as port:
        address = parse_broker(f"mqtt://127.0.0.1:{port}")
        twins = [MqttTransport(address, "covey-default-pi", connect_timeout_s=20.0) for _ in range(2)]
        line = said(caplog, "soon after the login")
        assert "no second program runs as covey-default-pi" in line
        for twin in twins:
            twin.close()


def test_a_broker_that_goes_away_and_comes_back_with_another_certificate_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells the loss, then why reconnecting does not work: the words of a first connection."""
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    lines = "cafile {ca}\ncertfile {pair.cert}\nkeyfile {pair.key}\n"
    ours = LISTENER + lines.format(ca=authority.ca, pair=authority.make("broker"))
    theirs = lines.format(ca=other.ca, pair=other.make("broker"))
    with mosquitto(tmp_path / "first", ours) as port:
        address = parse_broker(f"mqtts://127.0.0.1:{port}")
        transport = MqttTransport(address, "covey-x", tls=TlsFiles(str(authority.ca)), connect_timeout_s=20.0)
    said(caplog, "connection to the broker lost: ")
    said(caplog, f"no program takes connections on port {port}")
    again = LISTENER.replace("{port}", str(port)) + theirs + "listener {port} 127.0.0.1\n"
    with mosquitto(tmp_path / "second", again):
        said(caplog, "is not trusted here")
        transport.close()
    assert "Unspecified" not in caplog.text


# -- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[int]:
    """A broker with a password, and an access list that lets the device publish its birth only."""
    passwords, access = tmp_path / "passwords", tmp_path / "access"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), USER, PASSWORD], check=True, capture_output=True)
    access.write_text(f"user {USER}\ntopic write covey/v1/default/pi/birth\ntopic read covey/v1/default/#\n")
    access.chmod(0o600)
    guards = f"password_file {passwords}\nacl_file {access}\n"
    with mosquitto(tmp_path / "mosquitto", LISTENER.replace("true", "false") + guards) as port:
        yield port


def edge_toml(folder: Path, broker: str, more: str = "") -> str:
    (folder / "data.jsonl").write_text('{"text": "good", "label": "yes"}\n')
    path = folder / "edge.toml"
    path.write_text(f'name = "pi"\nbroker = "{broker}"\nconnect_timeout_s = 1.0\n[data]\npath = "data.jsonl"\n{more}')
    return str(path)


def ends(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = cli.main([*words, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("", "asks for a user name and a password"),
        ("pi:wrong@", "refuses the user 'pi' or its password"),
        (f"{USER}:{PASSWORD}@", "does not let the user 'pi' publish on covey/v1/default/pi/state"),
    ],
)
def test_run_and_doctor_end_with_the_same_words_and_code(
    tmp_path: Path, guarded: int, capsys: pytest.CaptureFixture[str], user: str, words: str
) -> None:
    edge = edge_toml(tmp_path, f"mqtt://{user}127.0.0.1:{guarded}")
    code, ran = ends(capsys, "run", "--config", edge)
    assert (code, words in ran["error"]) == (7, True), ran
    code, examined = ends(capsys, "doctor", "--config", edge)
    broker = next(check for check in examined["checks"] if check["check"] == "broker")
    assert (code, broker["status"], words in broker["found"]) == (7, "problem", True), broker
    assert ran["hint"] in broker["advice"]
    assert PASSWORD not in json.dumps([ran, broker])


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_a_missing_file_is_said_as_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pair = Authority(tmp_path / "authority").make("pi")
    files = {"ca_file": tmp_path / "authority" / "ca.pem", "cert_file": pair.cert, "key_file": pair.key}
    files[name] = tmp_path / "gone.pem"
    table = "[tls]\n" + "".join(f'{setting} = "{path}"\n' for setting, path in files.items())
    with silent_port() as port:
        edge = edge_toml(tmp_path, f"mqtts://127.0.0.1:{port}", table)
        code, ran = ends(capsys, "run", "--config", edge)
        assert (code, ran["error"]) == (3, f"there is no file {tmp_path}/gone.pem ([tls] {name})")
        code, examined = ends(capsys, "doctor", "--config", edge)
    broker = next(check for check in examined["checks"] if check["check"] == "broker")
    assert (code, broker["found"], broker["advice"]) == (3, ran["error"], ran["hint"])


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("pi:wrong@", "refuses the user 'pi' or its password"),
        (f"{USER}:{PASSWORD}@", "does not let the user 'pi' publish on covey/v1/default/covey-check/plan"),
    ],
)
def test_serve_says_the_same_of_an_external_broker(
    tmp_path: Path, guarded: int, tiny_bundle: Bundle, user: str, words: str
) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, guarded, external=True)
    try:
        server = fleet.serve(write_job(fleet.root), "--broker", f"mqtt://{user}127.0.0.1:{guarded}")
        wait_for(lambda: words in server.stderr.read_text(), words)
        assert PASSWORD not in server.stderr.read_text()
    finally:
        fleet.stop()


def test_the_commands_do_not_end_on_an_answer_that_is_no_mqtt(tmp_path: Path) -> None:
    """A whole process: paho's thread must not die, and no traceback is printed."""
    with ssh_port() as port:
        edge = edge_toml(tmp_path, f"mqtt://127.0.0.1:{port}")
        command = [sys.executable, "-m", "edge_runtime.cli", "run", "--config", edge]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "is not an MQTT broker but something that answers 'SSH-2.0" in done.stderr
    assert "Traceback" not in done.stderr
