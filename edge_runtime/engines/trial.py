"""Tries a bundle in a child process: tokenizer and runtime are loaded, and the golden vectors are run.

A compiled library that does not fit this processor, or that needs more memory than there is, ends the child.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge_runtime.engines import executorch_build
from edge_runtime.engines.child import Patience, answer, run_child, say_doing
from edge_runtime.errors import BundleError, ConfigError, StorageError, TrainingError

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.golden import Parity

_PATIENCE = Patience(limit_s=1800.0)
"""A slow board needs minutes where a fast one needs seconds: only a child that hangs reaches it."""
_ERRORS = {error.exit_code: error for error in (BundleError, StorageError, TrainingError)}
ONNX_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
)
"""Packages that bring ONNX Runtime, each with other execution providers; at most one of them is installed."""
_OF_PROCESSOR = {
    "vendor_id",
    "model name",
    "flags",
    "Features",
    "CPU implementer",
    "CPU architecture",
    "CPU part",
    "isa",
}


def try_bundle(path: Path, engines: Engines, patience: Patience = _PATIENCE) -> Parity:
    """Try a bundle in a child process.

    Args:
        path: the bundle's folder.
        engines: the runtime and its threads; this process does not load it.
        patience: how long the child may take.

    Returns:
        The largest differences from PyTorch.

    Raises:
        ConfigError: a library is not installed, or it ended the child: by a signal, or by taking too long.
        BundleError: the bundle cannot be loaded, or its golden vectors differ: see check_golden.
        StorageError, TrainingError: descriptors, disk or memory are short.
    """
    from edge_runtime.engines.golden import Parity  # noqa: PLC0415 the child says what it loads before it loads it

    arguments = (str(path), engines.runtime, str(engines.threads), ",".join(engines.providers))
    found = run_child(__name__, *arguments, doing=f"trying bundle {path.name[:12]}", patience=patience)
    if found.what:
        raise _ERRORS.get(found.exit_code, ConfigError)(found.what, found.hint)
    return Parity(**found.values)


def runtime_version(runtime: Runtime) -> str:
    """Return the version of a runtime that is installed, without loading it.

    Raises:
        ConfigError: it is not installed.
    """
    if runtime == "executorch":
        return executorch_build.VERSION
    for package in ONNX_PACKAGES:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError(f"{runtime} is not installed", f"pip install {runtime}")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of this kind of processor: its architecture, and a hash of its features where Linux lists them.

    A disk that moves into another board comes to another processor.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = sorted({line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR})
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16] if kept else "unknown"
    return f"{platform.machine()}-{digest}"


def _try(path: Path, runtime: Runtime, threads: int, providers: tuple[str, ...]) -> dict[str, Any]:
    from edge_runtime.bundle.folder import open_bundle  # noqa: PLC0415 as in try_bundle

    bundle = open_bundle(path)
    name = f"{runtime} {runtime_version(runtime)}"
    try:
        say_doing(f"loading tokenizers {metadata.version('tokenizers')}")
        from edge_runtime.data.encodings import unless_refused  # noqa: PLC0415
        from edge_runtime.data.tokens import load_tokenizer  # noqa: PLC0415

        tokenizer = load_tokenizer(bundle.file(bundle.manifest.tokenizer_file))
        unless_refused(tokenizer.encode, "one text")  # a device's own texts are judged where its rows are read
        say_doing(f"loading {name}")
        from edge_runtime.engines.choose import Engines  # noqa: PLC0415
        from edge_runtime.engines.golden import check_golden  # noqa: PLC0415

        engines = Engines(runtime, threads, providers)
        engines.opener()
        if runtime == "executorch":
            from edge_runtime.engines import executorch_library  # noqa: PLC0415

            executorch_library.load()  # compiles it first if that has not been done
    except ImportError as error:
        library = error.name or runtime
        raise ConfigError(f"{library} does not load: {error}", f"pip install --force-reinstall {library}") from error
    where = "" if engines.name == runtime else f", {', '.join(providers)}"
    say_doing(f"running the golden vectors of bundle {bundle.sha256[:12]} on {name}{where}")
    return dataclasses.asdict(check_golden(bundle, engines))


if __name__ == "__main__":
    given = sys.argv[1:5]
    answer(lambda: _try(Path(given[0]), cast("Runtime", given[1]), int(given[2]), tuple(given[3].split(","))))
