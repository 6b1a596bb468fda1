"""Every command in docs/hil.md is run, as far as it goes without a board; a small server is the switched socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomllib
import yaml
from repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs/hil.md"


def commands() -> list[str]:
    """Return the commands of the page's blocks, without their remarks."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@contextlib.contextmanager
def switched_socket() -> Iterator[tuple[str, list[Any]]]:
    """Run a Shelly plug of the second generation; yield its address, and what it was asked."""
    asked: list[Any] = []

    class Plug(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/rpc"
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"id": 1, "result": {"was_on": True}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Plug)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(words: list[str], folder: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LG_", "PYTEST_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_of_the_page_is_run(tmp_path: Path) -> None:
    pytest.importorskip("labgrid")
    board, run = tmp_path / "board.yaml", []
    with switched_socket() as (address, asked):
        for command in commands():
            words = [str(board) if word == "board.yaml" else word for word in shlex.split(command)]
            if words[:2] == ["sudo", "make"]:
                recipe = said(["make", "-n", *words[2:]])
                module = {"board": "-m tests.hil.board --boot", "hil": "-m pytest -m hil tests/hil --lg-env tests/hil/"}
                assert module[words[2]] in recipe
            elif words[0] == "pip":
                (extra,) = re.findall(r"\.\[(\w+)\]", words[-1])
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                assert any(need.startswith("labgrid") for need in project["optional-dependencies"][extra])
            elif words[0] == "cp":
                shutil.copy(ROOT / words[1], board)
                described = yaml.safe_load(board.read_text())
                described["targets"]["main"]["resources"]["NetworkPowerPort"]["host"] = address
                board.write_text(yaml.safe_dump(described))
            elif words[0] == "labgrid-client":
                said(words)
                assert asked[-1]["method"] == "Switch.Set"
                assert asked[-1]["params"]["on"] == (words[-1] == "on")
            else:
                assert words[0] == "pytest"
                listed = said([sys.executable, "-m", *words, "--collect-only", "-q", "-p", "no:cacheprovider"])
                assert "test_heat_and_throttling_are_read_as_the_board_has_them" in listed
                assert ("test_a_power_cut_in_mid_round_ends_on_the_same_bits" in listed) == ("hil" in words)
            run.append(words[0])
    assert {"sudo", "pip", "cp", "labgrid-client", "pytest"} == set(run)
    assert len(asked) == 2
