"""Looks into a wheel before anything of it is installed: is it Covey, is it whole, what does it need."""

from __future__ import annotations

import email.parser
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import UpdateError, unreadable, wall
from edge_runtime.files.hashing import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = "covey"
_MAX_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """A wheel of Covey.

    Attributes:
        path: the file.
        version: version of Covey.
        sha256: its SHA-256, in hex.
        unpacked_bytes: what its files take on disk.
        requirements: its ``Requires-Dist`` lines.
    """

    path: Path
    version: str
    sha256: str
    unpacked_bytes: int
    requirements: tuple[str, ...]


def read_wheel(path: Path, sha256: str | None) -> Wheel:
    """Read and check a wheel.

    Args:
        path: the file.
        sha256: its SHA-256 in hex, as whoever wants it installed has stated it; None: nobody has.

    Raises:
        UpdateError: it cannot be read, is damaged, has another hash, or is not a wheel of Covey.
    """
    if path.suffix != ".whl":
        raise UpdateError(f"{path} is no wheel: its name does not end with .whl", "give the file that pip installs")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise unreadable(error, UpdateError(f"cannot read {path}: {error.strerror}", "check the path")) from error
    if sha256 is not None and found != sha256.lower():
        raise UpdateError(
            f"{path.name} has SHA-256 {found[:12]}…, and {sha256[:12].lower()}… is wanted",
            "fetch it again; if the hash stays, it is another wheel than the one that was meant",
        )
    with wall(lambda cause: UpdateError(f"{path.name} is damaged: {cause}", "fetch or build the wheel again")):
        return _checked(path.absolute(), found)


def _checked(path: Path, sha256: str) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise UpdateError(f"{path.name} is damaged: {damaged} does not match its checksum", "fetch it again")
        entries = archive.infolist()
        metadata = [entry for entry in entries if entry.filename.endswith(".dist-info/METADATA")]
        if len(metadata) != 1 or metadata[0].filename.count("/") != 1:
            raise UpdateError(f"{path.name} is no wheel: it has no METADATA", "build it with: pip wheel --no-deps")
        if metadata[0].file_size > _MAX_METADATA_BYTES:
            raise UpdateError(f"{path.name} is no wheel of Covey: its METADATA is too long", "fetch it again")
        text = archive.read(metadata[0]).decode("utf-8", errors="replace")
    fields = email.parser.HeaderParser().parsestr(text)
    name, version = fields.get("Name", ""), fields.get("Version", "")
    if name.lower() != PROJECT or not version:
        raise UpdateError(f"{path.name} is a wheel of {name or 'nothing'}, not of Covey", "give a wheel of Covey")
    size = sum(entry.file_size for entry in entries)
    return Wheel(path, version, sha256, size, tuple(fields.get_all("Requires-Dist") or ()))
