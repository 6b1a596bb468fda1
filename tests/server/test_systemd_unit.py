"""``covey server unit``: the unit that systemd runs."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.network.address import TlsFiles
from server.commands.serve import add_addresses, options_of
from server.commands.shared_options import add_state_dir
from server.commands.systemd_unit import unit_text
from server.serving.options import ServeOptions


def line(text: str, key: str) -> str:
    (found,) = [row for row in text.splitlines() if row.startswith(f"{key}=")]
    return found.removeprefix(f"{key}=")


def test_a_unit_has_the_options_that_differ_from_the_defaults(tmp_path: Path) -> None:
    plain = line(unit_text(ServeOptions(state_dir=tmp_path), "covey"), "ExecStart")
    assert shlex.split(plain)[1:] == ["-m", "server.cli", "serve", "--state-dir", str(tmp_path.resolve())]
    options = ServeOptions(
        state_dir=tmp_path,
        fleet="barn",
        broker="mqtts://broker:8883",
        mqtt_port=1884,
        api_port=8090,
        report_connections=3,
        tls=TlsFiles("ca.pem", "server.pem", "server.key"),
    )
    text = unit_text(options, "covey")
    words = shlex.split(line(text, "ExecStart"))
    assert words[-2:] == ["--tls-key", "server.key"]
    assert words[words.index("--fleet") + 1] == "barn"
    assert words[words.index("--broker") + 1] == "mqtts://broker:8883"
    assert words[words.index("--mqtt-port") + 1] == "1884"
    assert words[words.index("--report-connections") + 1] == "3"
    assert (line(text, "User"), line(text, "Restart")) == ("covey", "on-failure")
    assert line(text, "KillMode") == "mixed"


SOMETHING = {
    "--broker": "mqtt://broker:1883",
    "--report-connections": "2",
    "--fleet": "barn",
    "--listen": "192.0.2.1",
    "--mqtt-port": "1884",
    "--http-port": "8081",
    "--public-url": "https://covey.example",
    "--blob-mirror": "https://mirror.example",
    "--blobs": "s3://bucket/covey",
    "--threads": "3",
    "--tls-ca": "ca.pem",
    "--tls-cert": "server.pem",
    "--tls-key": "server.key",
    "--api-port": "8090",
    "--api-listen": "192.0.2.4",
    "--api-url": "https://pages.example",
    "--operators": "/etc/covey/operators.toml",
    "--operator-header": "X-Operator",
    "--operator-proxy": "192.0.2.2",
    "--join-port": "8444",
    "--approve-joins": "",
    "--announce": "",
    "--mosquitto": "/etc/mosquitto/covey",
    "--sign-key": "/keys/server",
    "--device-keys": "/keys/devices",
    "--ledger": "postgresql://database/covey",
    "--standby": "",
    "--workers": "2",
    "--ray-address": "192.0.2.3:6379",
}
"""A value of every flag that is not its default."""


def test_a_unit_has_every_flag(tmp_path: Path) -> None:
    """What ``covey server unit`` is given, the unit gives ``covey serve``."""
    parser = argparse.ArgumentParser()
    add_addresses(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    assert flags == SOMETHING.keys()
    add_state_dir(parser)
    either = ["--workers", "--ray-address"]
    for left_out in either:
        given = [word for flag, value in SOMETHING.items() if flag != left_out for word in (flag, value) if word]
        options = options_of(parser.parse_args([*given, "--state-dir", str(tmp_path)]))
        words = shlex.split(line(unit_text(options, "covey"), "ExecStart"))
        assert words[1:4] == ["-m", "server.cli", "serve"]
        assert options_of(parser.parse_args(words[4:])) == options


def test_a_password_is_not_written_where_everybody_can_read_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="password"):
        unit_text(ServeOptions(state_dir=tmp_path, broker="mqtt://me:secret@broker"), "covey")


@pytest.mark.parametrize("folder", ["plain", "with space", 'a"quote', "100%", "$HOME", "back\\slash"])
def test_systemd_takes_the_unit_whatever_the_folder_s_name(tmp_path: Path, folder: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "covey.service"
    unit.write_text(unit_text(ServeOptions(state_dir=tmp_path / folder), "root"))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
