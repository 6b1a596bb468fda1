"""A bundle that is new on a device is tried in a child process, once; what ends the child is said with its signal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import wait_for

from edge_runtime.cli import main
from edge_runtime.engines.child import Patience, run_child
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import Parity
from edge_runtime.engines.trial import processor, try_bundle
from edge_runtime.errors import BundleError, ConfigError, CoveyError, StorageError
from edge_runtime.store import trials
from edge_runtime.store.trials import TRIALS_FILE, read_trials, require_trial

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

ENGINES = Engines(threads=1)
PATIENT = Patience(limit_s=60.0)
KILL = "import os, signal\nos.kill(os.getpid(), signal.{})\n"
DEADLY = {
    "SIGABRT": ("import os, sys\nsys.stderr.write('last words\\n')\nsys.stderr.flush()\nos.abort()\n", "last words"),
    "SIGILL": (KILL.format("SIGILL"), "newer one"),
    "SIGSEGV": (KILL.format("SIGSEGV"), "not its own"),
    "SIGBUS": (KILL.format("SIGBUS"), "mapped"),
    "SIGKILL": (KILL.format("SIGKILL"), "lack of memory"),
    "SIGTERM": (KILL.format("SIGTERM"), "somebody"),
}
LATE = """
import os, enum
__version__ = "0"
class Any:
    def __init__(self, *_): pass
    def __getattr__(self, _): return Any()
    def __call__(self, *_, **__): return Any()
OrtMemoryInfo = OrtArenaCfg = SessionOptions = create_and_register_allocator = Any()
OrtAllocatorType = OrtMemType = Any()
class OrtValue: pass
def get_available_providers(): return ['CPUExecutionProvider']
class InferenceSession:
    def __init__(self, *_, **__): os.abort()
"""


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Put a module before the real one, for child processes: this process has loaded the real one."""
    __import__(name)
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(("library", "signal"), [*(("onnxruntime", name) for name in DEADLY), ("tokenizers", "SIGILL")])
def test_a_library_that_ends_its_process_is_an_error_with_signal_and_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, library: str, signal: str
) -> None:
    text, meaning = DEADLY[signal]
    fake(tmp_path, monkeypatch, library, text)
    with pytest.raises(ConfigError, match=signal) as caught:
        try_bundle(tiny_bundle.path, ENGINES)
    assert meaning in caught.value.what
    assert f"loading {library}" in caught.value.what
    assert caught.value.hint


def test_a_crash_within_the_golden_vectors_is_told_from_one_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    fake(tmp_path, monkeypatch, "onnxruntime", LATE)
    with pytest.raises(ConfigError, match=r"running the golden vectors of bundle .* on onnxruntime .* by SIGABRT"):
        try_bundle(tiny_bundle.path, ENGINES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ImportError('libstdc++.so.6: not found', name='onnxruntime')", "does not load: libstdc"),
        ("raise MemoryError", "too little free memory"),
        ("raise OSError(24, 'Too many open files')", "no file descriptor left"),
        ("raise KeyError('boom')", "KeyError: 'boom'"),
        ("import sys; sys.exit(5)", "exit code 5"),
        ("import sys; sys.exit(0)", "fails"),
        ("print('{\"answer\": 3}'); print('[' * 100_000, flush=True); import os; os.abort()", "SIGABRT"),
        ("print('{\"answer\": 3}', flush=True); import os; os._exit(0)", "exit code 0"),
    ],
)
def test_every_other_end_of_the_child_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, text: str, said: str
) -> None:
    fake(tmp_path, monkeypatch, "onnxruntime", text)
    with pytest.raises(CoveyError) as caught:
        try_bundle(tiny_bundle.path, ENGINES)
    assert said in caught.value.what
    assert caught.value.hint


def test_a_child_that_hangs_is_stopped_and_the_log_says_that_it_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    fake(tmp_path, monkeypatch, "onnxruntime", "import threading\nthreading.Event().wait()\n")
    with caplog.at_level(logging.INFO), pytest.raises(ConfigError, match="does not end: it was stopped after 3 s"):
        try_bundle(tiny_bundle.path, ENGINES, Patience(limit_s=3.0, said_every_s=1.0))
    assert "s so far" in caplog.text


def test_a_child_ends_with_its_parent_and_is_the_first_to_go(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    (tmp_path / "hangs.py").write_text(
        "import os, threading\nfrom pathlib import Path\nfrom edge_runtime.engines.child import answer\n"
        "def hang():\n"
        f"    path = Path({str(pid_file)!r})\n"
        "    path.with_suffix('.new').write_text(f'{os.getpid()} ' + Path('/proc/self/oom_score_adj').read_text())\n"
        "    path.with_suffix('.new').rename(path)\n"
        "    threading.Event().wait()\n"
        "answer(hang)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    script = "from edge_runtime.engines.child import *; run_child('hangs', doing='it', patience=Patience(None))"
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_for(pid_file.exists, "the child")
        pid, score = pid_file.read_text().split()
    finally:
        parent.kill()
        parent.wait()
    assert score == "1000"

    def is_gone() -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True

    wait_for(is_gone, "the child's end")


def test_the_parent_of_a_good_trial_has_not_loaded_the_runtime(tiny_bundle: Bundle) -> None:
    script = (
        "import sys; from pathlib import Path; from edge_runtime.engines.choose import Engines\n"
        "from edge_runtime.engines.trial import try_bundle\n"
        f"print(try_bundle(Path({str(tiny_bundle.path)!r}), Engines(threads=1)).loss < 1e-5)\n"
        "print({'onnxruntime', 'tokenizers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "set()"]


def test_golden_vectors_that_differ_are_the_bundle_s_error(bundle_copy: Bundle) -> None:
    manifest = json.loads((bundle_copy.path / "manifest.json").read_bytes())
    manifest["golden"]["tolerance"] = 1e-30
    (bundle_copy.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="golden vectors differ"):
        try_bundle(bundle_copy.path, ENGINES)


# -- what a device remembers --------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the trials that were made; nothing is run."""
    folders: list[Path] = []

    def passes(path: Path, _engines: Engines) -> Parity:
        folders.append(path)
        return Parity(0.0, 0.0)

    monkeypatch.setattr(trials, "try_bundle", passes)
    return folders


def test_a_combination_is_tried_once_and_any_change_is_another_one(
    tmp_path: Path, tiny_bundle: Bundle, tried: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        require_trial(tmp_path, tiny_bundle, ENGINES)
    assert len(tried) == 1
    for name, value in (
        ("runtime_version", lambda _: "99.0"),
        ("processor", lambda: "another"),
        ("__version__", "99.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trials, name, value)
            before = len(tried)
            for _ in range(2):
                require_trial(tmp_path, tiny_bundle, ENGINES)
            assert len(tried) == before + 1, name
    require_trial(tmp_path, tiny_bundle, ENGINES)  # the old combination is still known
    assert len(tried) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == [TRIALS_FILE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"passed": [{}]}', b"\xff\x00", b"[" * 100_000])
def test_a_damaged_memory_is_set_aside_and_the_bundle_tried_again(
    tmp_path: Path, tiny_bundle: Bundle, tried: list[Path], content: bytes
) -> None:
    (tmp_path / TRIALS_FILE).write_bytes(content)
    with pytest.raises(StorageError, match="is damaged"):
        read_trials(tmp_path)
    require_trial(tmp_path, tiny_bundle, ENGINES)
    assert len(tried) == len(read_trials(tmp_path).passed) == 1
    assert (tmp_path / f"{TRIALS_FILE}.bad").read_bytes() == content


def test_a_failure_is_remembered_until_a_trial_passes_and_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    with monkeypatch.context() as patch:
        fake(tmp_path, patch, "onnxruntime", DEADLY["SIGILL"][0])
        with pytest.raises(ConfigError, match="SIGILL"):
            require_trial(tmp_path / "state", tiny_bundle, ENGINES)
    failed = read_trials(tmp_path / "state").failed
    assert failed is not None
    assert (failed.exit_code, "SIGILL" in failed.what) == (3, True)
    require_trial(tmp_path / "state", tiny_bundle, ENGINES)
    assert msgspec.structs.astuple(read_trials(tmp_path / "state"))[1] is None


def test_a_processor_is_named_by_its_features(tmp_path: Path) -> None:
    def named(**fields: Any) -> str:
        lines = [f"{key.replace('_', ' ')}\t: {value}" for key, value in fields.items()]
        (tmp_path / "cpuinfo").write_text("\n".join(lines * 4))
        return processor(tmp_path / "cpuinfo")

    pi4 = named(processor=0, BogoMIPS="108.0", Features="fp asimd crc32", CPU_part="0xd08")
    assert pi4 == named(processor=3, BogoMIPS="54.0", Features="fp asimd crc32", CPU_part="0xd08")
    assert pi4 != named(processor=0, BogoMIPS="108.0", Features="fp asimd crc32 asimddp", CPU_part="0xd0b")
    assert processor(tmp_path / "none").endswith("-unknown")
    assert processor() == processor()


# -- commands -----------------------------------------------------------------------------------------------------


def test_verify_survives_a_runtime_that_aborts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path, monkeypatch, "onnxruntime", DEADLY["SIGABRT"][0])
    assert main(["bundle", "verify", str(tiny_bundle.path), "--format", "json"]) == ConfigError.exit_code
    assert "SIGABRT" in json.loads(capsys.readouterr().out)["error"]


def test_a_child_that_cannot_be_started_is_the_machine_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StorageError, match="/nowhere/python"):
        run_child("json", doing="loading it", patience=PATIENT)
