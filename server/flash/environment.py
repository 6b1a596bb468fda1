"""Makes the environment of a board as one archive: Python packages for its machine, installed without running anything.

pip chooses and unpacks wheels for the board's Python and machine, so that the board needs neither network nor pip.
"""

from __future__ import annotations

import compileall
import io
import json
import os
import py_compile
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from edge_runtime import __version__
from edge_runtime.errors import NetworkError, storage_error
from edge_runtime.files.hashing import file_sha256
from edge_runtime.update.slots import MARKER_FILE, Installed
from server.flash.device_wheel import make_device_wheel
from server.flash.libraries import LEAST_ALIGNMENT, short_aligned
from server.flash.needed import missing_packages
from server.flash.places import FIRST, FIRST_SLOT, SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

Machine = Literal["aarch64", "x86_64"]
"""Machines for which there are wheels of everything that the device side needs."""

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "linux")
_MOST_PASSES = 5
_OTHER_INDEX = "give the index that has onnxruntime-gpu for this board with --extra-index-url URL; or "


@dataclass(frozen=True)
class Sources:
    """Where packages come from.

    Attributes:
        wheels: a folder of wheels, from which alone they are taken; None: an index.
        index_url: the index; None: pip's own.
        extra_index_url: another index beside it, as NVIDIA's; None: there is none.
        onnxruntime: the package that brings ONNX Runtime: ``onnxruntime-gpu`` has CUDA and TensorRT.
    """

    wheels: Path | None = None
    index_url: str | None = None
    extra_index_url: str | None = None
    onnxruntime: str = "onnxruntime"


@dataclass(frozen=True)
class Environment:
    """An environment that was made.

    Attributes:
        archive: the tar file.
        packages: ``NAME VERSION`` of what is in it.
        unpacked_bytes: what it takes on the board.
        has_kernel: whether it has Covey's compiled kernel.
        short_aligned: libraries that a kernel with pages of 16 KiB cannot load.
    """

    archive: Path
    packages: tuple[str, ...]
    unpacked_bytes: int
    has_kernel: bool
    short_aligned: tuple[str, ...]


def make_environment(
    python: str, sources: Sources, archive: Path, machine: Machine = "aarch64", *, compiled: bool = False
) -> Environment:
    """Write an environment for a board as a tar file: one folder, the launcher's first slot, whose marker comes last.

    Args:
        python: the board's version of Python, as ``3.11``.
        sources: where packages come from.
        archive: the file that is written.
        machine: the board's machine.
        compiled: whether Python's caches are in it too, where this Python is the board's: it takes a board minutes.

    Raises:
        NetworkError: pip finds no wheels; the error has its last line.
        StorageError: the disk is full, or a library in a wheel is damaged or not of such a machine.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder)
        wheel, has_kernel = make_device_wheel(root, machine, sources.onnxruntime)
        site = root / "site"
        _install(python, machine, sources, [str(wheel), "pip"], site)
        for _ in range(_MOST_PASSES):
            missing = missing_packages(site, python, machine)
            if not missing:
                break
            _install(python, machine, sources, missing, site)
        packages = tuple(sorted(_name_of(info) for info in site.glob("*.dist-info")))
        short = short_aligned(site)
        if compiled and python == f"{sys.version_info.major}.{sys.version_info.minor}":
            _compile(site, python)
        try:
            installed = Installed(FIRST_SLOT, __version__, file_sha256(wheel))
            size = _pack(python, site, archive, installed)
        except OSError as error:
            raise storage_error(error, archive) from error
    return Environment(archive, packages, size, has_kernel, short)


def shortcomings(made: Environment, machine: Machine = "aarch64") -> list[str]:
    """Return what the operator should know of an environment before a board is flashed with it, as sentences."""
    found = []
    if not made.has_kernel:
        found.append(
            "no compiled kernel: NumPy does the work, slower and with the same bits (sudo apt install "
            f"gcc-{machine.replace('_', '-')}-linux-gnu)"
        )
    if made.short_aligned:
        found.append(
            f"a Raspberry Pi 5 cannot load these libraries, aligned to less than {LEAST_ALIGNMENT} bytes: "
            f"{', '.join(made.short_aligned)}"
        )
    return found


def _install(python: str, machine: Machine, sources: Sources, what: Sequence[str], target: Path) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_{machine}")]
    places = (
        ["--no-index", "--find-links", str(sources.wheels)]
        if sources.wheels is not None
        else [
            word
            for flag, url in (("--index-url", sources.index_url), ("--extra-index-url", sources.extra_index_url))
            if url is not None
            for word in (flag, url)
        ]
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms),
            *(*places, "--target", str(target), *what),
        ],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        raise NetworkError(
            f"pip finds no packages for Python {python} on {machine}: {said[-1] if said else 'it said nothing'}",
            f"{_OTHER_INDEX if sources.onnxruntime != 'onnxruntime' else ''}"
            f"fetch them where there is a network, and give --wheels DIR: pip download --only-binary=:all: "
            f"--python-version {python} --platform {_PLATFORMS[0]}_{machine} -d DIR covey {sources.onnxruntime} pip",
        )


def _compile(site: Path, python: str) -> None:
    """Write Python's caches beside the sources; they hold for files of the time that all have in the archive: 0."""
    for source in site.rglob("*.py"):
        os.utime(source, (0, 0))
    place = f"{SLOTS}/{FIRST}/lib/python{python}/site-packages"
    compileall.compile_dir(
        site, stripdir=str(site), prependdir=place, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP
    )


def _name_of(info: Path) -> str:
    name, _, version = info.name.removesuffix(".dist-info").partition("-")
    return f"{name} {version}"


def _pack(python: str, site: Path, archive: Path, installed: Installed) -> int:
    """Write the archive; return the bytes that its files take."""
    env = PurePosixPath(FIRST)
    size = 0
    with tarfile.open(archive, "w") as tar:
        texts = {
            env / "pyvenv.cfg": (f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n", 0o644),
            env / "bin" / "covey-edge": (_SCRIPT.format(environment=f"{SLOTS}/{FIRST}"), 0o755),
        }
        links = {env / "bin" / "python3": f"/usr/bin/python{python}", env / "bin" / "python": "python3"}
        for path, (text, mode) in texts.items():
            _add_text(tar, path, text, mode)
        for path, target in links.items():
            entry = tarfile.TarInfo(str(path))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for source in sorted(site.rglob("*")):
            if not source.is_file() or source.relative_to(site).parts[0] == "bin":
                continue
            entry = tarfile.TarInfo(str(env / "lib" / f"python{python}" / "site-packages" / source.relative_to(site)))
            entry.size, entry.mode = source.stat().st_size, 0o644
            size += entry.size
            with source.open("rb") as file:
                tar.addfile(entry, file)
        _add_text(tar, env / MARKER_FILE, json.dumps(asdict(installed)), 0o644)
    return size


def unpack_environment(archive: Path, folder: Path) -> None:
    """Unpack what make_environment has written; nothing leaves the folder where Python (3.11.4 and later) knows how.

    Debian 12's Python 3.11.2 has no filters; the archive was made here.
    """
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)
        tar.extractall(folder)  # noqa: S202 made here


def _add_text(tar: tarfile.TarFile, path: PurePosixPath, text: str, mode: int) -> None:
    entry = tarfile.TarInfo(str(path))
    entry.size, entry.mode = len(text.encode()), mode
    tar.addfile(entry, io.BytesIO(text.encode()))


_SCRIPT = """\
#!{environment}/bin/python3
import sys
from edge_runtime.cli import main
sys.exit(main())
"""


def archive_problems(data: bytes, python: str) -> list[str]:
    """Return what keeps an archive, read to its end, from being the first version in a board's slots; none: nothing.

    Args:
        data: the archive.
        python: the version of the board's Python.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = set(tar.getnames())
    except tarfile.TarError as error:
        return [f"the archive is damaged ({error})"]
    site = f"lib/python{python}/site-packages"
    needed = ("bin/covey-edge", f"{site}/edge_runtime/cli.py", f"{site}/onnxruntime/__init__.py", MARKER_FILE)
    return [f"{FIRST}/{name} is missing in it" for name in needed if f"{FIRST}/{name}" not in names]
