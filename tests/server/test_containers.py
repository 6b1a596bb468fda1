"""The container files against what exists: paths, commands, ports, users; and compose's first steps, run for real.

No container engine is needed, and none is asked: what only an engine can show is not shown here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleets import has_mosquitto, mosquitto
from parsers import parser_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "ops" / "containers"
STATE, BROKER = "/var/lib/covey", "/var/lib/covey-broker"
Instruction = tuple[str, str]


def _instructions(name: str) -> list[list[Instruction]]:
    """Return a Containerfile's stages, each a list of instructions with what follows them."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[Instruction]] = []
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.strip().split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest))
    return stages


def _only(stage: list[Instruction], word: str) -> str:
    (found,) = [rest for name, rest in stage if name == word]
    return found


def _base(stage: list[Instruction]) -> str:
    return _only(stage, "FROM").split(" AS ")[0]


def _parse(words: list[str]) -> argparse.Namespace:
    return parser_of(words[0]).parse_args(words[1:])


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


@pytest.mark.parametrize(
    ("name", "state"), [("server.Containerfile", STATE), ("device.Containerfile", "/var/lib/covey-edge")]
)
def test_an_image_is_built_in_stages_from_paths_that_exist_and_runs_as_a_user(name: str, state: str) -> None:
    build, final = _instructions(name)
    copied = [shlex.split(rest)[:-1] for word, rest in build if word == "COPY"]
    sources = {path for paths in copied for path in paths}
    assert sources >= {"pyproject.toml", "setup.py", "edge_runtime", "server", "export"}
    assert [path for path in sources if not (ROOT / path).exists()] == []
    # The environment is copied from one stage to the other: both have the same Python.
    assert _base(build) == _base(final)
    assert [rest for word, rest in final if word == "COPY"] == ["--from=build /opt/covey /opt/covey"]
    user = _only(final, "USER")
    made = " ".join(rest for word, rest in final if word == "RUN")
    assert f"-o {user} " in made
    assert state in made
    words = [word for word, _ in final]
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")
    assert _only(final, "VOLUME") == state
    entry, command = json.loads(_only(final, "ENTRYPOINT")), json.loads(_only(final, "CMD"))
    assert callable(_parse([*entry, *command]).run)
    health = _only(final, "HEALTHCHECK").split(" CMD ")[1]
    assert callable(_parse(json.loads(health)).run)


def test_the_extra_that_an_image_installs_exists() -> None:
    build, _ = _instructions("server.Containerfile")
    (extra,) = re.findall(r'"\.\[(\w+)\]"', " ".join(rest for _, rest in build))
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


def _argv(compose: dict[str, Any], service: str) -> list[str]:
    return [word.replace("${COVEY_HOST}", "fleet.example") for word in compose["services"][service]["command"]]


def _init_lines(compose: dict[str, Any]) -> list[str]:
    service = compose["services"]["init"]
    assert service["entrypoint"] == ["/bin/sh", "-ec"]
    (script,) = service["command"]
    return str(script).replace("$$", "$").strip().splitlines()


def test_ports_are_those_at_which_the_server_and_the_broker_listen(compose: dict[str, Any]) -> None:
    services = compose["services"]
    server = _parse(["covey", *_argv(compose, "server")])
    broker = _parse(["covey", *shlex.split(_init_lines(compose)[1].split("covey ", 1)[1])])
    assert services["server"]["ports"] == [f"{port}:{port}" for port in (server.http_port, server.join_port)]
    assert services["mosquitto"]["ports"] == [f"{broker.port}:{broker.port}"]
    assert server.broker == f"mqtts://fleet.example:{broker.port}"
    assert services["mosquitto"]["healthcheck"]["test"][-1] == str(broker.port)
    exposed = _only(_instructions("server.Containerfile")[1], "EXPOSE").split()
    assert exposed == [str(port) for port in (server.http_port, server.join_port, broker.port)]


def test_services_share_state_broker_files_and_user(compose: dict[str, Any]) -> None:
    services = compose["services"]
    server = _parse(["covey", *_argv(compose, "server")])
    volumes = {name: [volume.split(":") for volume in service["volumes"]] for name, service in services.items()}
    mounts = {name: {parts[1]: parts[0] for parts in found} for name, found in volumes.items()}
    assert {volume for mounted in mounts.values() for volume in mounted.values()} == set(compose["volumes"])
    assert mounts["server"] == mounts["init"] == {str(server.state_dir): "state", str(server.mosquitto): "broker"}
    assert mounts["mosquitto"] == {str(server.mosquitto): "broker"}
    assert services["mosquitto"]["command"] == ["mosquitto", "-c", f"{server.mosquitto}/mosquitto.conf"]
    final = _instructions("server.Containerfile")[1]
    uid = re.search(r"--uid (\d+)", " ".join(rest for _, rest in final))
    assert uid is not None
    assert services["mosquitto"]["user"] == f"{uid[1]}:{uid[1]}"
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        if "build" in service:
            context = (FOLDER / service["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / service["build"]["dockerfile"]).is_file()


@pytest.fixture
def places(tmp_path: Path, compose: dict[str, Any]) -> tuple[str, dict[str, str], Path]:
    """The init service's script, for folders of this machine and with this Python's covey."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "covey").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m server.cli "$@"\n')
    (tools / "covey").chmod(0o755)
    script = "\n".join(_init_lines(compose))
    script = script.replace(BROKER, str(tmp_path / "broker")).replace(STATE, str(tmp_path / "state"))
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "COVEY_HOST": "localhost"}
    return script, environment, tmp_path


def test_the_steps_of_init_make_an_authority_once_and_files_that_a_real_mosquitto_takes(
    places: tuple[str, dict[str, str], Path],
) -> None:
    script, environment, folder = places
    made = []
    for _ in range(2):  # compose runs it at every start
        subprocess.run(["/bin/sh", "-ec", script], env=environment, check=True, timeout=300, capture_output=True)
        trust = {path.name: path.read_bytes() for path in (folder / "state" / "trust").iterdir() if path.is_file()}
        made.append((trust, (folder / "broker" / "broker-key.pem").read_bytes()))
    assert made[0] == made[1]
    assert made[0][0]
    config = folder / "broker" / "mosquitto.conf"
    if not has_mosquitto():
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    text = config.read_text().replace("{", "{{").replace("}", "}}").replace("listener 8883", "listener {port}")
    with (
        mosquitto(folder / "run", text) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        ssl.create_default_context(cafile=str(folder / "broker" / "ca.pem")).wrap_socket(
            plain, server_hostname="localhost"
        ) as secured,
    ):
        assert secured.version() == "TLSv1.3"
