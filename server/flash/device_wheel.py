"""Makes the wheel of Covey's device side for a board from the Covey that is installed here.

It has the package edge_runtime and nothing of server and export. The compiled kernel is built for the board where a
cross compiler is installed; without it NumPy does the work, with the same bits.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import edge_runtime
from edge_runtime.errors import StorageError, storage_error

_COMPILER = "{machine}-linux-gnu-gcc"
"""The compiler for a machine, as Debian names it: packages gcc-aarch64-linux-gnu and gcc-x86-64-linux-gnu."""

_KERNEL_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")
"""The flags of setup.py: other ones could give other bits."""

_KERNEL, _KERNEL_SOURCE = "edge_runtime/native/perturb.so", "native/kernel/perturb.c"
_LEFT_OUT = {".so", ".pyc"}
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def make_device_wheel(folder: Path, machine: str, onnxruntime: str = "onnxruntime") -> tuple[Path, bool]:
    """Write the wheel into a folder; return its path and whether it has the compiled kernel.

    Args:
        folder: where it is written.
        machine: the board's machine.
        onnxruntime: the package that it needs for ONNX Runtime.

    Raises:
        StorageError: it cannot be written, or the compiler fails.
    """
    package = Path(edge_runtime.__file__).parent
    kernel = _compiled_kernel(package, machine)
    tag = "py3-none-any" if kernel is None else f"py3-none-manylinux_2_17_{machine}"
    version = edge_runtime.__version__
    path = folder / f"covey-{version}-{tag}.whl"
    files = {
        f"edge_runtime/{source.relative_to(package).as_posix()}": source.read_bytes()
        for source in sorted(package.rglob("*"))
        if source.is_file() and source.suffix not in _LEFT_OUT and "__pycache__" not in source.parts
    }
    if kernel is not None:
        files[_KERNEL] = kernel
    info = f"covey-{version}.dist-info"
    files[f"{info}/METADATA"] = _metadata(version, onnxruntime).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: covey flash\nRoot-Is-Purelib: {str(kernel is None).lower()}\nTag: {tag}\n"
    ).encode()
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ncovey-edge = edge_runtime.cli:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise storage_error(error, path) from error
    return path, kernel is not None


def requirements(onnxruntime: str = "onnxruntime") -> list[str]:
    """Return what the device side needs, as in this Covey's own metadata, without the extras.

    Args:
        onnxruntime: the package that brings ONNX Runtime; the versions that are needed stay the same.
    """
    lines = [line for line in metadata.requires("covey") or [] if "extra ==" not in line]
    return [re.sub(r"^onnxruntime(?![\w.-])", onnxruntime, line) for line in lines]


def _metadata(version: str, onnxruntime: str) -> str:
    needed = "".join(f"Requires-Dist: {line}\n" for line in requirements(onnxruntime))
    return f"Metadata-Version: 2.1\nName: covey\nVersion: {version}\nRequires-Python: >=3.10\n{needed}"


def _record(files: dict[str, bytes], own: str) -> bytes:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return "\n".join([*lines, f"{own},,", ""]).encode()


def _compiled_kernel(package: Path, machine: str) -> bytes | None:
    name = _COMPILER.format(machine=machine)
    compiler = shutil.which(name)
    source = package / _KERNEL_SOURCE
    if compiler is None or not source.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "perturb.so"
        done = subprocess.run(
            [compiler, *_KERNEL_FLAGS, str(source), "-o", str(out), "-lm"], capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise StorageError(
                f"{name} cannot compile the kernel: {said[-1] if said else 'it said nothing'}",
                "mend the compiler, or remove it: without it NumPy does the work",
            )
        return out.read_bytes()
