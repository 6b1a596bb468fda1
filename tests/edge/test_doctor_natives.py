"""``covey-edge doctor`` survives compiled libraries that end their process, and names the signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.commands.doctor_natives import load_in_child, native_findings, numpy_finding
from edge_runtime.engines import executorch_build

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Runtime

DEADLY = {
    "SIGABRT": "import os, sys\nsys.stderr.write('cpuinfo: unknown vendor\\n')\nsys.stderr.flush()\nos.abort()\n",
    "SIGILL": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
    "SIGSEGV": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
}


def doctor(path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run ``covey-edge doctor`` with a folder of modules before all others."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    command = [sys.executable, "-m", "edge_runtime.cli", "doctor", "--format", "json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("signal", DEADLY)
@pytest.mark.parametrize("name", ["onnxruntime", "tokenizers", "numpy"])
def test_a_library_that_ends_its_process_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, signal: str
) -> None:
    (tmp_path / f"{name}.py").write_text(DEADLY[signal])
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_in_child(name)
    assert signal in loaded.what
    assert loaded.hint
    assert ("unknown vendor" in loaded.what) == (signal == "SIGABRT")


def test_doctor_goes_on_without_onnxruntime_and_ends_with_the_code_of_that_problem(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(DEADLY["SIGABRT"])
    code, answer = doctor(tmp_path)
    status = {check["check"]: check["status"] for check in answer["checks"]}
    assert (code, status["onnxruntime"], status["tokenizers"]) == (3, "problem", "ok")
    assert "clock" in status  # the last check was made


def test_without_numpy_nothing_else_is_tried(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(DEADLY["SIGILL"])
    code, answer = doctor(tmp_path)
    assert code == 3
    assert [check["check"] for check in answer["checks"]] == ["numpy"]
    assert "SIGILL" in answer["checks"][0]["found"]


@pytest.mark.parametrize(("engine", "status"), [("onnxruntime", "absent"), ("executorch", "problem")])
def test_a_device_without_executorch_is_looked_at_all_the_same(
    monkeypatch: pytest.MonkeyPatch, engine: Runtime, status: str
) -> None:
    """It is no dependency of a device; doctor once ended with its absence alone."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr(executorch_build, "PACKAGED", Path("nowhere"))
    found = {finding.check: finding for finding in native_findings(engine, build=False)}
    assert (found["onnxruntime"].status, found["tokenizers"].status) == ("ok", "ok")
    assert (found["executorch"].status, found["executorch"].exit_code) == (status, 3)
    assert "pip install --no-deps executorch" in found["executorch"].advice


def test_a_library_that_raises_is_said_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6: not found', name='onnxruntime')\n")
    (tmp_path / "tokenizers.py").write_text("raise RuntimeError('PanicException')\n")
    found = {finding.check: finding for finding in native_findings("executorch", build=False)}
    assert (found["onnxruntime"].status, found["onnxruntime"].advice) == ("absent", "pip install onnxruntime")
    assert "PanicException" in found["tokenizers"].found
    assert numpy_finding().status == "ok"
