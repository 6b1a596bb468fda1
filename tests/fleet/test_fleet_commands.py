"""``covey fleet`` and ``covey device`` against a server that runs: tokens, approvals, revocation, other names."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.agent.config import read_edge_config
from edge_runtime.cli import main as edge
from edge_runtime.errors import ConfigError, EnrolmentError, NetworkError
from edge_runtime.trust.token import decode_token
from server.cli import main
from server.serving.always_on import serve
from server.serving.options import ServeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.serving.host import Host


@contextlib.contextmanager
def serving(state_dir: Path, **options: Any) -> Iterator[dict[str, Any]]:
    """Serve a fleet in a thread until the block ends; yields what the server says of itself."""
    ready, stop = threading.Event(), threading.Event()
    said: dict[str, Any] = {}

    def is_ready(host: Host) -> None:
        said.update(host.described())
        ready.set()

    def run() -> None:
        made = ServeOptions(state_dir, listen="127.0.0.1", mqtt_port=0, http_port=0, join_port=0, **options)
        serve(made, lambda _job, _event: None, stop.is_set, is_ready)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield said
    finally:
        stop.set()
        thread.join(60)


class Operator:
    """Gives commands to the server of a state directory."""

    def __init__(self, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._state_dir, self._capsys = state_dir, capsys

    def covey(self, *words: str, code: int = 0) -> dict[str, Any]:
        assert main([*words, "--state-dir", str(self._state_dir), "--format", "json"]) == code
        answer: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return answer

    def token(self, name: str, port: int, folder: Path) -> str:
        file = folder / f"{name}.token"
        self.covey("fleet", "token", name, "--file", str(file), "--url", f"https://127.0.0.1:{port}")
        return file.read_text().split()[1]


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    made = Operator(tmp_path / "state", capsys)
    made.covey("fleet", "init", "--host", "127.0.0.1")
    return made


def test_an_operator_approves_rejects_renames_and_revokes(operator: Operator, tmp_path: Path) -> None:
    with serving(tmp_path / "state", approve_joins=True) as said:
        port = said["join_port"]
        config = ["--config", str(tmp_path / "edge.toml"), "--format", "json"]
        other = ["--config", str(tmp_path / "other" / "edge.toml"), "--format", "json"]
        (tmp_path / "other").mkdir()
        good, bad = operator.token("pi-a", port, tmp_path), operator.token("pi-b", port, tmp_path)
        assert edge(["join", good, "--wait", "0", *config]) == NetworkError.exit_code
        assert edge(["join", bad, "--wait", "0", *other]) == NetworkError.exit_code
        operator._capsys.readouterr()
        waiting = operator.covey("device", "list", "--pending")["joins"]
        assert [(one["device"], one["address"]) for one in waiting] == [("pi-a", "127.0.0.1"), ("pi-b", "127.0.0.1")]
        assert operator.covey("device", "approve", "pi-a")["state"] == "approved"
        assert operator.covey("device", "reject", "pi-b")["state"] == "rejected"
        assert operator.covey("device", "list", "--pending")["joins"] == []
        assert "waits for approval" in operator.covey("device", "approve", "pi-a", code=ConfigError.exit_code)["error"]
        assert edge(["join", good, "--wait", "0", *config]) == 0
        assert edge(["join", bad, "--wait", "0", *other]) == EnrolmentError.exit_code
        read = read_edge_config(tmp_path / "edge.toml")
        assert (read.broker, read.server_url) == (
            f"mqtts://127.0.0.1:{said['mqtt_port']}",
            f"https://127.0.0.1:{said['http_port']}",
        )
        operator._capsys.readouterr()
        operator.covey("device", "rename", "pi-a", "a/b", code=ConfigError.exit_code)
        operator.covey("device", "rename", "nobody", "x", code=ConfigError.exit_code)
        operator.covey("device", "rename", "pi-a", "oven")
        assert "taken" in operator.covey("device", "rename", "pi-a", "oven", code=ConfigError.exit_code)["error"]
        assert edge(["renew", *config]) == 0
        assert read_edge_config(tmp_path / "edge.toml").name == "oven"
        operator._capsys.readouterr()
        assert operator.covey("device", "revoke", "oven")["certificates"] == 2
        operator.covey("device", "revoke", "oven", code=ConfigError.exit_code)
        assert edge(["renew", "--now", *config]) == EnrolmentError.exit_code


def test_revoking_a_name_cancels_its_tokens(operator: Operator, tmp_path: Path) -> None:
    with serving(tmp_path / "state") as said:
        token = operator.token("pi-a", said["join_port"], tmp_path)
        assert operator.covey("device", "revoke", "pi-a")["certificates"] == 0
        assert edge(["join", token, "--config", str(tmp_path / "edge.toml")]) == EnrolmentError.exit_code
    assert decode_token(token).device == "pi-a"


def test_a_forgotten_device_comes_back_with_a_new_token_only(operator: Operator, tmp_path: Path) -> None:
    with serving(tmp_path / "state") as said:
        config = ["--config", str(tmp_path / "edge.toml")]
        assert edge(["join", operator.token("pi-a", said["join_port"], tmp_path), *config]) == 0
        operator._capsys.readouterr()
        assert operator.covey("device", "forget", "pi-a")["state"] == "forgotten"
        operator.covey("device", "forget", "pi-a", code=ConfigError.exit_code)
        assert edge(["renew", "--now", *config]) == EnrolmentError.exit_code
        (tmp_path / "pi-a.token").unlink()
        assert edge(["join", operator.token("pi-a", said["join_port"], tmp_path), *config]) == 0


def test_doctor_looks_at_the_authority(operator: Operator, tmp_path: Path) -> None:
    ports = ["--mqtt-port", "0", "--http-port", "0", "--join-port", "0"]
    found = operator.covey("server", "doctor", *ports)["checks"]
    statuses = {one["check"]: one["status"] for one in found}
    assert (statuses["authority"], statuses["join port"]) == ("ok", "ok")
    (tmp_path / "state" / "trust" / "server-key.pem").chmod(0o644)
    assert main(["server", "doctor", *ports, "--state-dir", str(tmp_path / "state")]) != 0
    assert "other users can read" in operator._capsys.readouterr().out


def test_a_server_of_another_fleet_or_without_an_authority_says_so(operator: Operator, tmp_path: Path) -> None:
    options = {"listen": "127.0.0.1", "mqtt_port": 0, "http_port": 0, "join_port": 0}
    for state, more, what in (
        ("state", {"fleet": "other"}, "authority of fleet default"),
        ("bare", {"approve_joins": True}, "covey fleet init"),
    ):
        with pytest.raises(ConfigError) as refused:
            serve(ServeOptions(tmp_path / state, **options, **more), lambda _job, _event: None, lambda: True)  # type: ignore[arg-type]
        assert what in str(refused.value)
    with serving(tmp_path / "none") as said:
        assert "join_port" not in said
