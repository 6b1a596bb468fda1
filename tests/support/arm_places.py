"""Places for the golden tier: a Python of Debian's arm64 under qemu-user, with the environment that cards carry.

Roots of Debian and test packages are kept in ~/.cache/covey-tests, or the folder that COVEY_TEST_CACHE names, by what
they are made from. The environment of the device side is made anew each time, from the tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.flash.environment import Machine, Sources, make_environment, unpack_environment

RELEASES = {"3.11": "bookworm", "3.13": "trixie"}
"""Debian's releases by their Python. No arm64 interpreter of 3.10 is to be had from Debian, PyPI or npm."""
CPUS = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
"""Processors of a Raspberry Pi 3 and Zero 2, 4, and 5, with Arm's numbers of their parts."""
_DEBIAN = ("python3", "libpython3-stdlib", "libstdc++6", "libgcc-s1", "zlib1g")
_TEST_PACKAGES = ("pytest>=8", "hypothesis>=6.100", "exceptiongroup")
_KEPT = ("usr", "etc", "bin", "lib", "lib64", "sbin")
_FEATURES = {
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
}


if TYPE_CHECKING:
    from collections.abc import Callable


class NotHereError(Exception):
    """What is missing on this machine, and how to get it; tests are skipped with it."""


@dataclass(frozen=True)
class Place:
    """A Python on a processor, and where its packages are.

    Attributes:
        command: what starts the interpreter.
        site: the packages that a card carries.
        cpu: the processor that QEMU emulates; None: this machine's own.
    """

    command: tuple[str, ...]
    site: Path
    cpu: str | None

    def run(
        self, *arguments: str, cwd: Path, timeout_s: float = 900, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python there, with nothing of this machine's environment but PATH and HOME."""
        paths = [str(self.site), str(guest_packages()), str(Path(__file__).parent)]
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
        if self.cpu is not None:
            environment["QEMU_CPU"] = self.cpu
        return subprocess.run(
            [*self.command, *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


def emulator() -> str:
    """Return qemu-user for 64-bit Arm; NotHereError: it is not installed."""
    return _tool("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64")


def emulated(root: Path, python: str, cpu: str, site: Path, folder: Path, *, page_bytes: int = 4096) -> Place:
    """Return a place in a root; /proc/cpuinfo and /sys are as on the processor, for ONNX Runtime reads them."""
    prefix = folder / f"prefix-{cpu}"
    if not prefix.exists():
        (prefix / "proc").mkdir(parents=True)
        (prefix / "sys/devices/system/cpu").mkdir(parents=True)
        for name in _KEPT:
            if os.path.lexists(root / name):
                (prefix / name).symlink_to((root / name).resolve())
        (prefix / "proc/cpuinfo").write_text(
            f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {_FEATURES.get(cpu, 'fp asimd evtstrm crc32 cpuid')}\n"
            f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {CPUS[cpu]}\n"
            "CPU revision\t: 3\n\n"
        )
        for name in ("possible", "present"):
            (prefix / "sys/devices/system/cpu" / name).write_text("0\n")
    qemu = (emulator(), "-p", str(page_bytes), "-L", str(prefix))
    return Place((*qemu, str(root / f"usr/bin/python{python}")), site, cpu)


def debian_root(python: str) -> Path:
    """Return the unpacked files of Debian's Python for arm64: nothing in it is run while it is made.

    Raises:
        NotHereError: mmdebstrap is missing, or finds no packages.
    """
    release = RELEASES[python]

    def make(root: Path) -> None:
        tool = _tool("mmdebstrap", "mmdebstrap")
        flags = ["--variant=extract", "--architectures=arm64", f"--include={','.join(_DEBIAN)}", "--quiet"]
        mode = ["--mode=root"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [tool, *mode, *flags, release, str(root)], capture_output=True, text=True, check=False, timeout=900
        )
        if done.returncode:
            raise NotHereError(f"mmdebstrap made no root of {release}: {done.stderr.strip()[-300:]}")
        # QEMU looks for each path in the root first: an empty /tmp there would hide this machine's.
        for path in root.iterdir():
            if path.name not in _KEPT:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        # Where these lead into /usr, a package has the links that is not extracted here.
        for name in ("bin", "lib", "sbin"):
            if not os.path.lexists(root / name):
                (root / name).symlink_to(f"usr/{name}")

    return _cached(f"arm64-{release}", make, "links", *_DEBIAN, *_KEPT)


def guest_packages() -> Path:
    """Return a folder with pytest and Hypothesis, which are the same files for every machine and version."""

    def make(site: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        flags = ["--only-binary=:all:", "--implementation", "py", "--python-version", "3.10", "--target", str(site)]
        subprocess.run([*command, *flags, *_TEST_PACKAGES], check=True, capture_output=True, timeout=600)

    return _cached("packages", make, *_TEST_PACKAGES)


def device_site(python: str, folder: Path, machine: Machine = "aarch64") -> Path:
    """Make the environment that a card carries, unpack it as a board does, and return its packages' folder."""
    made = make_environment(python, Sources(), folder / "env.tar", machine)
    assert made.has_kernel
    unpack_environment(made.archive, folder)
    made.archive.unlink()
    return folder / "env-a" / "lib" / f"python{python}" / "site-packages"


def native_python(python: str) -> str:
    """Return this machine's interpreter of a version, from PATH or pyenv; NotHereError: there is none."""
    found = [
        shutil.which(f"python{python}"),
        *sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python{python}")),
    ]
    for path in filter(None, found):
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith(f"Python {python}."):
            return str(path)
    raise NotHereError(f"needs Python {python}: put python{python} on the PATH")


def _tool(package: str, *names: str) -> str:
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    raise NotHereError(f"needs {names[0]}: apt install {package}")


def _cached(name: str, make: Callable[[Path], None], *key: str) -> Path:
    """Return a folder of the cache; make it where it is not there. Two processes may do so at once."""
    cache = Path(os.environ.get("COVEY_TEST_CACHE") or Path.home() / ".cache" / "covey-tests")
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:12]
    path = cache / f"{name}-{digest}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}-"))
        try:
            made = work / "made"
            made.mkdir()
            make(made)
            made.chmod(0o755)
            try:
                made.rename(path)
            except OSError:
                if not path.exists():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path
