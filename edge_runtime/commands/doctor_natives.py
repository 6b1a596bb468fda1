"""Checks of ``covey-edge doctor`` on compiled libraries: each is loaded in a child process, and cannot end doctor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__
from edge_runtime.commands.finding import Finding
from edge_runtime.engines import executorch_build
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.commands.finding import Status

_TIMEOUT_S = 120.0
_SIGNALS = {
    "SIGILL": "it was built for another processor: install a wheel for this one (an older version), or build it",
    "SIGSEGV": "install it again, in the version that pip chooses for this system: pip install --force-reinstall",
    "SIGABRT": "install another version of it; its last words are above",
    "SIGKILL": "the system has ended it, most likely for lack of memory: end other programs",
}
_OTHER_SIGNAL = "install another version of it"


@dataclass(frozen=True)
class Loaded:
    """What loading a library in a child process has shown.

    Attributes:
        values: what load_native printed; empty where it failed.
        what: why it failed; empty where it did not.
        hint: what to do about that.
        exit_code: the exit code of that failure.
    """

    values: dict[str, Any]
    what: str = ""
    hint: str = ""
    exit_code: int = ConfigError.exit_code


def numpy_finding() -> Finding:
    """Load NumPy, which everything else stands on: where that fails, no other check can be made."""
    loaded = load_in_child("numpy")
    return _finding("numpy", loaded, str(loaded.values.get("version")), "problem")


def native_findings(engine: Runtime, *, build: bool) -> Iterator[Finding]:
    """Yield a finding for each compiled library.

    Args:
        engine: the runtime that is configured.
        build: whether to compile the library of the ExecuTorch engine if that has not been done.
    """
    with ThreadPoolExecutor() as pool:
        kernel, tokenizers, onnxruntime = pool.map(load_in_child, ("kernel", "tokenizers", "onnxruntime"))
    values = {"version": __version__, "kernel": kernel.values.get("kernel")}
    said = "kernel {kernel}: {reason}".format_map(kernel.values) if kernel.values else f"its kernel: {kernel.what}"
    yield Finding(
        "covey", "problem" if kernel.what else "ok", f"{__version__}, {said}", kernel.hint, values, kernel.exit_code
    )
    yield _finding("tokenizers", tokenizers, str(tokenizers.values.get("version")), "problem")
    said = (
        "{version}, {0}".format(", ".join(onnxruntime.values["delegates"]), **onnxruntime.values)
        if onnxruntime.values
        else ""
    )
    yield _finding("onnxruntime", onnxruntime, said, "problem" if engine == "onnxruntime" else "absent")
    yield _executorch(needed=engine == "executorch", build=build)


def _finding(check: str, loaded: Loaded, said: str, missing: Status) -> Finding:
    if loaded.what:
        return Finding(check, missing, loaded.what, loaded.hint, {}, loaded.exit_code)
    return Finding(check, "ok", said, "", loaded.values)


def _executorch(*, needed: bool, build: bool) -> Finding:
    missing: Status = "problem" if needed or build else "absent"
    if not (needed or build or executorch_build.PACKAGED.is_file() or executorch_build.cached().is_file()):
        found = "installed, its engine is not compiled yet"
        return Finding(
            "executorch", "absent", found, "covey-edge doctor --build", {"version": executorch_build.VERSION}
        )
    loaded = load_in_child("executorch", timeout_s=None)  # may compile for minutes
    if loaded.what:
        return _finding("executorch", loaded, "", missing)
    delegates = loaded.values["delegates"]
    found = f"{executorch_build.VERSION}, {', '.join(delegates)}, {loaded.values['threads']} threads"
    if "XnnpackBackend" not in delegates:
        advice = "install the executorch wheel for Linux"
        return Finding("executorch", missing, f"{found}: no XNNPACK", advice, loaded.values)
    return Finding("executorch", "ok", found, "", loaded.values)


def load_in_child(name: str, timeout_s: float | None = _TIMEOUT_S) -> Loaded:
    """Load a library of load_native.LOADERS in a child process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    command = [sys.executable, "-m", "edge_runtime.commands.load_native", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return Loaded(
            {}, f"does not load in {timeout_s:g} s", "start the machine again; if it repeats, install it again"
        )
    if done.returncode == 0:
        values = json.loads(done.stdout.splitlines()[-1])
        return Loaded({}, **values) if "what" in values else Loaded(values)
    words = done.stderr.strip().splitlines()
    last = f": {words[-1]}" if words else ""
    if done.returncode < 0:
        ended_by = signal.Signals(-done.returncode).name
        what = f"loading it ends the process by {ended_by}{last}"
        return Loaded({}, what, _SIGNALS.get(ended_by, _OTHER_SIGNAL))
    return Loaded({}, f"does not load{last}", f"install it again: pip install --force-reinstall {name}")
