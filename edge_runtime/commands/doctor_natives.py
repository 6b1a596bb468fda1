"""Checks of ``covey-edge doctor`` on compiled libraries: each is loaded in a child process, and cannot end doctor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.commands.finding import Finding
from edge_runtime.engines import executorch_build
from edge_runtime.engines.child import Answer, Patience, run_child
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.commands.finding import Status

_PATIENCE = Patience(limit_s=120.0)


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


def _finding(check: str, loaded: Answer, said: str, missing: Status) -> Finding:
    if loaded.what:
        return Finding(check, missing, loaded.what, loaded.hint, {}, loaded.exit_code)
    return Finding(check, "ok", said, "", loaded.values)


def _executorch(*, needed: bool, build: bool) -> Finding:
    missing: Status = "problem" if needed or build else "absent"
    try:
        is_compiled = executorch_build.PACKAGED.is_file() or executorch_build.cached().is_file()
    except ConfigError as error:  # most devices have no executorch package, and need none
        return Finding("executorch", missing, error.what, error.hint, {}, error.exit_code)
    if not (needed or build or is_compiled):
        found = "installed, its engine is not compiled yet"
        return Finding(
            "executorch", "absent", found, "covey-edge doctor --build", {"version": executorch_build.VERSION}
        )
    loaded = load_in_child("executorch", Patience(limit_s=None))  # may compile for minutes
    if loaded.what:
        return _finding("executorch", loaded, "", missing)
    delegates = loaded.values["delegates"]
    found = f"{executorch_build.VERSION}, {', '.join(delegates)}, {loaded.values['threads']} threads"
    if "XnnpackBackend" not in delegates:
        advice = "install the executorch wheel for Linux"
        return Finding("executorch", missing, f"{found}: no XNNPACK", advice, loaded.values)
    return Finding("executorch", "ok", found, "", loaded.values)


def load_in_child(name: str, patience: Patience = _PATIENCE) -> Answer:
    """Load a library of load_native.LOADERS in a child process."""
    return run_child("edge_runtime.commands.load_native", name, doing="loading it", patience=patience)
