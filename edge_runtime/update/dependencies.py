"""Takes over, into a new virtual environment, the installed packages that a wheel needs: nothing is fetched again.

A package's files are linked (one copy on the disk; pip replaces files and never writes into them), or copied where the
disk has no links. A file that does not match its record is not taken over, so a damaged package is installed anew.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOG = logging.getLogger(__name__)
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
_PROBE = ".link"
INSTALLER = "pip"
"""Always taken over: it installs the wheel, and the next one."""


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: its normalized name.
        version: its version.
        files: its files, relative to ``folder``, each with the SHA-256 of its record; None: the record has none.
        folder: the site-packages that holds it.
    """

    name: str
    version: str
    files: tuple[tuple[str, str | None], ...]
    folder: Path

    @property
    def size_bytes(self) -> int:
        """What its files take on disk."""
        return sum(path.stat().st_size for name, _ in self.files if (path := self.folder / name).is_file())


def requested(paths: Sequence[str]) -> list[str]:
    """Return the names of the packages that somebody has installed by name, as an owner does with a runtime."""
    here = _installed(paths)
    return [name for name in sorted(here) if here[name].read_text("REQUESTED") is not None]


def packages_for(requirements: Iterable[str], paths: Sequence[str]) -> list[Package]:
    """Return the installed packages that requirements name, and those that these need, and so on; and pip.

    Versions and markers of environments are not looked at: pip does so afterwards, and replaces what does not fit.

    Args:
        requirements: ``Requires-Dist`` lines.
        paths: the folders of installed packages, as in sys.path.
    """
    here = _installed(paths)
    waiting = [(INSTALLER, ""), *_needed(requirements, "")]
    seen: set[tuple[str, str]] = set()
    found: dict[str, Package] = {}
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or name not in here:
            continue
        seen.add((name, extra))
        distribution = here[name]
        waiting += _needed(distribution.requires or (), extra)
        package = _package(name, distribution)
        if package is not None:
            found[name] = package
    return [found[name] for name in sorted(found)]


def _installed(paths: Sequence[str]) -> Mapping[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=list(paths)):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalized(name), distribution)  # the first one is the one that is imported
    return found


def normalized(name: str) -> str:
    """Return the name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _needed(requirements: Iterable[str], extra: str) -> list[tuple[str, str]]:
    """Return what requirements name, each with an extra that is asked for ("" is none), for one extra of its owner."""
    found = []
    for requirement in requirements:
        head, _, marker = requirement.partition(";")
        named = _REQUIREMENT.match(head)
        of_extras = {normalized(name) for name in _EXTRA.findall(marker)}
        if named is None or (of_extras and normalized(extra) not in of_extras):
            continue
        name = normalized(named[1])
        found.append((name, ""))
        found += [(name, asked.strip()) for asked in (named[2] or "").split(",") if asked.strip()]
    return found


def _package(name: str, distribution: metadata.Distribution) -> Package | None:
    """Return a package with its record; None where it has none, or lies elsewhere (as an editable one does)."""
    files = distribution.files
    if files is None or any(file.name == "direct_url.json" and _is_editable(distribution) for file in files):
        return None
    folder = Path(str(distribution.locate_file("")))
    kept = [
        (str(file), _hex(file.hash))
        for file in files
        if ".." not in file.parts and not file.is_absolute() and file.suffix != ".pyc"
    ]
    return Package(name, distribution.version, tuple(kept), folder)


def _is_editable(distribution: metadata.Distribution) -> bool:
    return '"editable": true' in (distribution.read_text("direct_url.json") or "")


def _hex(found: metadata.FileHash | None) -> str | None:
    if found is None or found.mode != "sha256":
        return None
    return base64.urlsafe_b64decode(found.value + "=" * (-len(found.value) % 4)).hex()


def take_over(package: Package, target: Path) -> bool:
    """Link or copy a package into another site-packages.

    Returns:
        Whether it is there now; False: a file is missing or damaged, and nothing of it is there.

    Raises:
        StorageError: the disk is full or not writable.
    """
    made: list[Path] = []
    for name, sha256 in package.files:
        source, place = package.folder / name, target / name
        data_sha256 = _sha256(source)
        if data_sha256 is None or sha256 not in (None, data_sha256):
            _LOG.warning("%s of %s is damaged: the package is installed anew", name, package.name)
            for path in made:
                path.unlink(missing_ok=True)
            return False
        if place.exists():  # two packages may both bring it
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(source, place)
        except OSError as error:
            raise storage_error(error, place) from error
        made.append(place)
    return True


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, place)


def can_link(package: Package, folder: Path) -> bool:
    """Whether a package's files can be linked into a folder; tried with one of them.

    Another disk cannot, some file systems have no links, and Linux refuses links to another user's files.
    """
    probe = folder / _PROBE
    source = next((path for name, _ in package.files if (path := package.folder / name).is_file()), None)
    if source is None:
        return True  # there is nothing to copy
    try:
        probe.unlink(missing_ok=True)
        os.link(source, probe)
        probe.unlink()
    except OSError:
        return False
    return True


def _sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, in hex; None where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def site_packages(environment: Path) -> Path | None:
    """Return the folder of installed packages of a virtual environment; None where there is none."""
    return next(iter(sorted(environment.glob("lib/python3*/site-packages"))), None)
