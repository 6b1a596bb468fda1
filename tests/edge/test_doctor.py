"""``covey-edge doctor``: findings from files that a board has, reachability, exit codes."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime import cli
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.commands.doctor_checks import examine
from edge_runtime.data.examples import DataConfig
from edge_runtime.device.eligibility import EligibilityRules
from edge_runtime.store.journal import Journal
from edge_runtime.store.store import Store
from server.web.broker import open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a hot board with little memory and two sensors, one of them switched off."""
    made = tmp_path / "root"
    for zone, text in (("0", "81500\n"), ("1", "")):
        sensor = made / f"sys/class/thermal/thermal_zone{zone}/temp"
        sensor.parent.mkdir(parents=True)
        sensor.write_text(text)
    (made / "proc").mkdir()
    (made / "proc/meminfo").write_text("MemTotal: 900000 kB\nMemAvailable:   100000 kB\n")
    return made


def config_of(tmp_path: Path, port: int, **fields: Any) -> EdgeConfig:
    data = DataConfig(str(tmp_path / "data.jsonl"))
    return EdgeConfig(name="pi", broker=f"mqtt://127.0.0.1:{port}", data=data, state_dir=str(tmp_path), **fields)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[int]:
    """The port of a broker."""
    with open_broker("embedded", "127.0.0.1", 0) as address:
        yield address.port


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers as covey serve does, with the date that http.server sends."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
        self.wfile.write(b'{"covey_version": "1"}' if self.path == "/healthz" else b"no such blob")

    def do_PATCH(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"no open plan expects this blob")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_findings(root: Path, tmp_path: Path, listening: int) -> None:
    found = {f.check: f for f in examine(config_of(tmp_path, listening, threads=200), lambda: 0.0, root)}
    assert found["memory"].values == {"free_bytes": 100_000 * 1024}
    assert found["temperature"].values == {"celsius": 81.5}
    assert {name: f.status for name, f in found.items() if name not in ("executorch", "disk")} == {
        "covey": "ok",
        "tokenizers": "ok",
        "onnxruntime": "ok",
        "board": "ok",
        "threads": "warning",
        "memory": "warning",
        "temperature": "warning",
        "eligibility": "ok",
        "state": "ok",
        "versions": "ok",
        "trial": "absent",
        "held-out": "absent",
        "data": "problem",
        "broker": "ok",
        "round trip": "ok",
        "hello": "warning",
        "server": "absent",
        "clock": "absent",
    }
    assert all(f.advice for f in found.values() if f.status in ("warning", "problem"))
    assert "200 configured, " in found["threads"].found


@pytest.mark.parametrize(
    ("threads", "said"),
    [(0, "1 thread: cgroup quota 50%"), (1, "1 thread: threads = 1 in edge.toml"), (2, "1 can run at once: cgroup")],
)
def test_board_and_threads_are_said_and_why(tmp_path: Path, threads: int, said: str) -> None:
    files = {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal: 8000000 kB\n",
        "proc/self/cgroup": "0::/covey\n",
        "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/covey/cpu.max": "50000 100000\n",
        "sys/devices/system/cpu/online": "0-3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {f.check: f for f in examine(config_of(tmp_path, 1, threads=threads), lambda: 0.0, tmp_path)}
    board = "Raspberry Pi 5 Model B Rev 1.0 (raspberry-pi-5), 4 cores online, 8192 MB of memory"
    assert found["board"].found == board
    assert said in found["threads"].found


@pytest.mark.parametrize(
    ("rules", "status", "said"),
    [
        (EligibilityRules(), "ok", "takes work now"),
        (EligibilityRules(least_disk_mb=1e12), "warning", "MB of disk free, below 1e+12"),
        (EligibilityRules(least_battery=0.5, unknown="refuse"), "problem", "no such sensor"),
    ],
)
def test_whether_the_device_takes_work(tmp_path: Path, rules: EligibilityRules, status: str, said: str) -> None:
    config = config_of(tmp_path, 1, eligibility=rules)
    finding = next(f for f in examine(config, lambda: 0.0, tmp_path) if f.check == "eligibility")
    assert (finding.status, said in finding.found) == (status, True)


def test_unknown_is_none(tmp_path: Path) -> None:
    found = {f.check: f for f in examine(None, lambda: 0.0, tmp_path)}
    assert found["temperature"].values == {"celsius": None}
    assert found["memory"].values == {"free_bytes": None}
    assert not {"broker", "server", "data"} & set(found)


def test_a_wrong_clock_is_seen_by_the_servers(root: Path, tmp_path: Path, listening: int) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        config = config_of(tmp_path, listening, server_url=f"http://127.0.0.1:{server.server_port}")
        found = {f.check: f for f in examine(config, lambda: 0.0, root)}
        server.shutdown()
        thread.join()
    assert found["server"].status == "ok"
    assert found["clock"].status == "warning"
    assert found["clock"].values["offset_s"] < -1e9


def test_the_first_problem_decides_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "data.jsonl").write_text("{}\n")
    edge = tmp_path / "edge.toml"
    edge.write_text(f'name = "pi"\nbroker = "mqtt://127.0.0.1:{port}"\n[data]\npath = "data.jsonl"\n')
    assert cli.main(["doctor", "--config", str(edge), "--format", "json"]) == 7
    answer = json.loads(capsys.readouterr().out)
    assert not answer["healthy"]
    assert [c["check"] for c in answer["checks"] if c["status"] == "problem"] == ["broker"]
    assert cli.main(["doctor"]) == 0
    assert "temperature" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [b"", b"\0" * 50, b"garbage", b'{"job": 5}'])
def test_a_damaged_journal_is_a_warning_because_run_sets_it_aside(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "journal.json").write_bytes(damaged)
    found = {f.check: f for f in examine(config_of(tmp_path, 1), lambda: 0.0, tmp_path)}
    assert (found["state"].status, "journal" in found["state"].found) == ("warning", True)
    assert (tmp_path / "journal.json").read_bytes() == damaged


def test_a_state_directory_that_cannot_be_one_ends_doctor_as_it_ends_run(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "covey-state").write_text("a file")
    edge = tmp_path / "edge.toml"
    edge.write_text('name = "pi"\nbroker = "mqtt://127.0.0.1:1"\n[data]\npath = "data.jsonl"\n')
    assert [cli.main([word, "--config", str(edge), "--format", "json"]) for word in ("run", "doctor")] == [8, 8]


def test_rows_are_checked_with_the_current_bundle_as_run_does(tmp_path: Path, tiny_bundle: Bundle) -> None:
    store = Store(tmp_path)
    shutil.copytree(tiny_bundle.path, store.bundles / tiny_bundle.sha256)
    store.write_journal(Journal(job="job", bundle_sha256=tiny_bundle.sha256, adapter_sha256="0" * 64))
    label = tiny_bundle.manifest.task.labels[0]
    for row, status in ((f'"label": "{label}"', "ok"), ('"label": "no such label"', "problem")):
        (tmp_path / "data.jsonl").write_text('{"text": "good", ' + row + "}\n")
        data = next(f for f in examine(config_of(tmp_path, 1), lambda: 0.0, tmp_path) if f.check == "data")
        assert (data.status, data.exit_code if status == "problem" else 4) == (status, 4), data
    for empty in ("", "\n \n"):
        (tmp_path / "journal.json").unlink(missing_ok=True)
        (tmp_path / "data.jsonl").write_text(empty)
        data = next(f for f in examine(config_of(tmp_path, 1), lambda: 0.0, tmp_path) if f.check == "data")
        assert (data.status, data.exit_code) == ("problem", 4)
