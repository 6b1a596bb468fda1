"""The device side stays light: no torch, no transformers, little memory, a quick start, a bare environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from wheels import copied_sources

HEAVY = ("torch", "transformers", "peft", "onnx", "safetensors", "starlette", "rich", "iotcore", "server", "export")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "edge_runtime").rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def run_python(code: str, executable: str = sys.executable) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", env=environment, timeout=100
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_room_of_the_device_is_looked_at() -> None:
    rooms = {path.parent.name for path in (ROOT / "edge_runtime").glob("*/__init__.py")}
    assert {"agent", "engines", "protocol"} <= rooms <= {module.split(".")[1] for module in MODULES}


def test_no_module_of_the_device_imports_anything_heavy() -> None:
    code = f"import sys, {', '.join(MODULES)}; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert run_python(code) == "[]"


def test_a_device_without_work_and_keys_loads_neither_runtime_nor_tokenizers_nor_cryptography() -> None:
    code = (
        "import sys, edge_runtime.cli, edge_runtime.agent.agent, edge_runtime.agent.config, edge_runtime.network.mqtt\n"
        "print([n for n in ('onnxruntime', 'tokenizers', 'cryptography') if n in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_nothing_is_pickled() -> None:
    """No pickle that came from elsewhere: messages are MessagePack, files safetensors, JSON and ONNX.

    One file looks into the weights that others saved with PyTorch, by the unpickler that builds tensors alone. Another
    hands values to a process that it has started itself, over a pipe that nobody else has.
    """
    reader = ROOT / "export" / "source" / "pickled.py"
    own_child = ROOT / "server" / "ray_work" / "parcels.py"
    pattern = re.compile(r"\b(pickle|cloudpickle|joblib|shelve|dill|marshal|torch\.load|allow_pickle)\b")
    sources = [path for side in ("edge_runtime", "server", "export") for path in (ROOT / side).rglob("*.py")]
    assert len(sources) > 30
    assert [path for path in sources if pattern.search(path.read_text())] == [own_child, reader]
    calls = re.findall(r"torch\.load\(.*", reader.read_text())
    assert calls
    assert all("weights_only=True" in call for call in calls)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bare_environment_has_a_working_device(tmp_path: Path) -> None:
    """Install the wheel as a board does, without extras, and use both commands."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            tmp_path,
            copied_sources(tmp_path),
        ],
        check=True,
    )
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (wheel,) = tmp_path.glob("covey-*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    code = (
        f"import {', '.join(MODULES)}; import importlib.util as u; print([n for n in {HEAVY[:5]!r} if u.find_spec(n)])"
    )
    assert run_python(code, python) == "[]"
    edge = subprocess.run([str(tmp_path / "venv" / "bin" / "covey-edge"), "--help"], check=False, capture_output=True)
    assert edge.returncode == 0
    looked = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "covey-edge"), "doctor", "--format", "json"], check=False, capture_output=True
    )
    checks = {check["check"]: check["status"] for check in json.loads(looked.stdout)["checks"]}
    assert (looked.returncode, checks["onnxruntime"], checks["executorch"]) == (0, "ok", "absent")
    covey = str(tmp_path / "venv" / "bin" / "covey")
    job = tmp_path / "job.toml"
    job.write_text("")
    for command in (["run", "--bundle", "x", "--job", str(job)], ["serve"], ["job", "list"], ["device", "list"]):
        served = subprocess.run([covey, *command], check=False, capture_output=True, text=True)
        assert served.returncode == 3
        assert "pip install 'covey[server]'" in served.stderr
