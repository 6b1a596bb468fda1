"""Builds the ExecuTorch engine's C++ library from the executorch wheel's C++ parts; no torch, no CMake.

A board compiles it once, when the engine is first used (or by ``covey-edge doctor --build``), into the user's cache.
``python -m edge_runtime.engines.executorch_build --out FOLDER`` makes a folder that needs no wheel and no compiler,
also for another processor: put it at ``edge_runtime/native/executorch`` before ``pip wheel .``, and the wheel
holds the engine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from edge_runtime.errors import ConfigError, storage_error

VERSION = "1.5.1"
"""Of ExecuTorch: what exports the graphs and what runs them."""
_NATIVE = Path(__file__).parents[1] / "native" / "executorch"
SOURCE = _NATIVE / "covey_executorch.cpp"
PACKAGED = _NATIVE / "covey_executorch.so"
LIBRARIES = ("executorch", "executorch_kernels_optimized", "executorch_backend_xnnpack", "executorch_threadpool")
"""What a device needs of the wheel, beside our library."""
_DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
_INSTALL = f"pip install --no-deps executorch=={VERSION}"


def find_sdk() -> Path:
    """Return the folder of the installed executorch package; it is not imported, because it would import torch.

    Raises:
        ConfigError: it is not installed, of another version, or without its C++ libraries.
    """
    spec = importlib.util.find_spec("executorch")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if not places:
        raise ConfigError(
            "the executorch package is not installed", f"{_INSTALL} (its Python dependencies are not used)"
        )
    found = importlib.metadata.version("executorch").partition("+")[0]
    if found != VERSION:
        raise ConfigError(f"executorch {found} is installed, {VERSION} is needed", _INSTALL)
    return Path(places[0])


def library() -> Path:
    """Return the path of the compiled library; compile it if that has not been done.

    Raises:
        ConfigError: there is no compiler or no executorch package; the hint says what to install.
    """
    if PACKAGED.is_file():
        return PACKAGED
    path = cached()
    if not path.is_file():
        compile_library(find_sdk(), path)
    return path


def cached() -> Path:
    """Return the library's path in the cache; each source, version and location of the wheel has its own.

    Raises:
        ConfigError: see find_sdk.
    """
    sdk = find_sdk()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey"
    header = SOURCE.with_suffix(".h").read_bytes()
    key = hashlib.sha256(SOURCE.read_bytes() + header + f"{sdk.resolve()} {VERSION} {platform.machine()}".encode())
    return cache / f"executorch-{key.hexdigest()[:16]}" / "covey_executorch.so"


def compile_library(sdk: Path, out: Path, compiler: str | None = None, search_path: str | None = None) -> None:
    """Compile the library and put it into place by a rename.

    Args:
        sdk: the executorch package's folder.
        out: the library.
        compiler: a C++17 compiler; by default CXX from the environment, else g++, else clang++.
        search_path: where the library will look for ExecuTorch's; by default in the package's folder.

    Raises:
        ConfigError: no compiler, or it failed.
        StorageError: ``out`` cannot be written.
    """
    compiler = compiler or os.environ.get("CXX") or next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise ConfigError(
            f"the ExecuTorch engine must be compiled once, and there is no C++ compiler ({compiler or 'g++'})",
            "sudo apt install g++ (Debian, Raspberry Pi OS, Ubuntu), or install a covey wheel that holds the engine",
        )
    lib = sdk / "lib"
    missing = [name for name in LIBRARIES if not (lib / f"lib{name}.so").is_file()]
    if missing:
        raise ConfigError(f"{sdk} has no lib{missing[0]}.so", f"use the wheel for Linux: {_INSTALL}")
    include = sdk / "include"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder) / out.name
            command = [
                *compiler.split(),
                "-std=c++17",
                "-O2",
                "-fPIC",
                "-shared",
                *(f"-D{name}" for name in _DEFINITIONS),
                "-isystem",
                str(include),
                "-isystem",
                str(include / "executorch/runtime/core/portable_type/c10"),
                str(SOURCE),
                "-o",
                str(made),
                # The kernels and XNNPACK are not called: they register themselves when they are loaded.
                f"-L{lib}",
                "-Wl,--no-as-needed",
                *(f"-l{name}" for name in LIBRARIES),
                f"-Wl,-rpath,{search_path or lib}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-500:])
                raise ConfigError(
                    f"the ExecuTorch engine does not compile with {compiler}: {reason.strip()}",
                    "a C++17 compiler and the C library's headers are needed: sudo apt install g++",
                )
            made.replace(out)
    except OSError as error:
        raise storage_error(error, out) from error


def standalone(folder: Path, sdk: Path, compiler: str | None = None) -> int:
    """Make a folder with everything that a device needs to run ``.pte`` files.

    Returns:
        Its size in bytes.
    """
    compile_library(sdk, folder / PACKAGED.name, compiler, "$ORIGIN")
    for name in LIBRARIES:
        shutil.copy2(sdk / "lib" / f"lib{name}.so", folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> int:
    """Make a standalone folder."""
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.engines.executorch_build", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--sdk", type=Path, help="an executorch package's folder (default: the installed one)")
    parser.add_argument("--compiler", help="default: CXX, g++ or clang++")
    args = parser.parse_args()
    size = standalone(args.out, args.sdk or find_sdk(), args.compiler)
    print(f"{args.out}: {size / 1e6:.1f} MB")  # noqa: T201 a command
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
