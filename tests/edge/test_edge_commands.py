"""Commands as a person uses them: help, JSON, exit codes that do not change."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_models import reviews, write_rows

from edge_runtime import cli as edge_cli
from edge_runtime import errors
from edge_runtime.agent.config import read_edge_config
from export.errors import ExportError
from server import cli as server_cli
from server.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

EDGE = 'name = "pi"\nbroker = "mqtt://127.0.0.1:1883"\n[data]\npath = "data.jsonl"\n'


def test_exit_codes_are_stable() -> None:
    codes = {
        error.__name__: error.exit_code
        for error in (
            errors.CoveyError,
            errors.ConfigError,
            errors.DataError,
            errors.BundleError,
            errors.ProtocolError,
            errors.NetworkError,
            errors.StorageError,
            errors.TrainingError,
            errors.FaultError,
            ExportError,
            JobError,
        )
    }
    assert codes == {
        "CoveyError": 1,
        "ConfigError": 3,
        "DataError": 4,
        "BundleError": 5,
        "ProtocolError": 6,
        "NetworkError": 7,
        "StorageError": 8,
        "TrainingError": 9,
        "FaultError": 70,
        "ExportError": 10,
        "JobError": 11,
    }


@pytest.mark.parametrize(
    "command",
    [
        "covey-edge",
        "covey-edge doctor",
        "covey-edge run",
        "covey-edge predict",
        "covey-edge data check",
        "covey-edge bundle verify",
        "covey-edge bundle show",
        "covey bundle diff",
        "covey",
        "covey export",
        "covey probe",
        "covey serve",
        "covey job list",
        "covey job show",
        "covey device list",
        "covey bundle verify",
        "covey demo",
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = command.split()
    with pytest.raises(SystemExit) as caught:
        (edge_cli if program == "covey-edge" else server_cli).main([*words, "--help"])
    assert caught.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_wrong_usage_is_exit_code_2() -> None:
    with pytest.raises(SystemExit) as caught:
        edge_cli.main(["run"])
    assert caught.value.code == 2


def test_the_configuration_is_read_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text(EDGE + '[tls]\nca_file = "ca.pem"\n')
    config = read_edge_config(tmp_path / "edge.toml")
    assert config.data.path == str(tmp_path / "data.jsonl")
    assert config.state_dir == str(tmp_path / "covey-state")
    assert config.tls is not None
    assert config.tls.ca_file == str(tmp_path / "ca.pem")
    assert config.tls.key_file is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EDGE.replace('name = "pi"', 'name = "a b"'), "name"),
        (EDGE.replace('name = "pi"\n', ""), "name"),
        (EDGE + "surprise = 1\n", "surprise"),
        (EDGE + "\n[tls]\nca = 1\n", "ca"),
        ("name =", "edge.toml"),
    ],
)
def test_a_wrong_configuration_is_named(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edge.toml").write_text(text)
    assert edge_cli.main(["run", "--config", str(tmp_path / "edge.toml"), "--format", "json"]) == 3
    out = json.loads(capsys.readouterr().out)
    assert out["exit_code"] == 3
    assert message in out["error"]
    assert out["hint"]


def test_missing_data_is_said_before_anything_is_connected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edge.toml").write_text(EDGE)
    assert edge_cli.main(["run", "--config", str(tmp_path / "edge.toml")]) == 3
    assert "no data file" in capsys.readouterr().err


def test_an_unreachable_broker_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_rows(reviews(4, 0), tmp_path / "data.jsonl")
    (tmp_path / "edge.toml").write_text("connect_timeout_s = 1.5\n" + EDGE.replace("1883", str(port)))
    assert edge_cli.main(["run", "--config", str(tmp_path / "edge.toml")]) == 7
    message = capsys.readouterr().err
    assert f"no connection to the broker at 127.0.0.1:{port}" in message
    assert f"no program takes connections on port {port}" in message
    assert "what to do: start the broker" in message


@pytest.mark.parametrize("url", ["", "localhost", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://h:x"])
def test_a_wrong_broker_address_is_said(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(reviews(4, 0), tmp_path / "data.jsonl")
    (tmp_path / "edge.toml").write_text(EDGE.replace("mqtt://127.0.0.1:1883", url))
    assert edge_cli.main(["run", "--config", str(tmp_path / "edge.toml")]) == 3
    assert "mqtt://host:1883" in capsys.readouterr().err


def test_data_check(tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(reviews(10, 0), tmp_path / "data.jsonl")
    arguments = ["data", "check", "--data", str(path), "--bundle", str(tiny_bundle.path), "--format", "json"]
    assert edge_cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == 10
    assert result["labels"] == {"bad": 5, "good": 5}
    assert result["tokens_max"] >= result["tokens_median"] > 0
    path.write_text(path.read_text() + '{"text": "a", "label": "ugly"}\n')
    assert edge_cli.main(["data", "check", "--data", str(path), "--labels", "bad,good"]) == 4
    assert "line 11" in capsys.readouterr().err
    assert edge_cli.main(["data", "check", "--data", str(path)]) == 3


def test_predict(tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cli.main(["predict", "--bundle", str(tiny_bundle.path), "a good film", "--format", "json"]) == 0
    (prediction,) = json.loads(capsys.readouterr().out)["predictions"]
    assert set(prediction["probabilities"]) == {"bad", "good"}
    (tmp_path / "edge.toml").write_text(EDGE)
    assert edge_cli.main(["predict", "--config", str(tmp_path / "edge.toml"), "x"]) == 3
    assert "no adapter yet" in capsys.readouterr().err
    (tmp_path / "short.bin").write_bytes(b"1234")
    code = edge_cli.main(["predict", "--bundle", str(tiny_bundle.path), "--adapter", str(tmp_path / "short.bin"), "x"])
    assert code == 5
    code = edge_cli.main(["predict", "--bundle", str(tiny_bundle.path), "--adapter", str(tmp_path / "none.bin"), "x"])
    assert code == 3
    (tmp_path / "nan.bin").write_bytes(np.full(tiny_bundle.manifest.parameters[-1].stop, np.nan, "<f4").tobytes())
    capsys.readouterr()
    code = edge_cli.main(["predict", "--bundle", str(tiny_bundle.path), "--adapter", str(tmp_path / "nan.bin"), "x"])
    assert code == 5
    assert "not finite" in capsys.readouterr().err
