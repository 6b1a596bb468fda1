"""Files beside a bundle's manifest that describe further graphs: ``decode.json``, ``behind.json``, ``stack.json``.

The manifest lists such a file and its graphs, so their hashes are checked; it does not describe them, so a Covey that
does not know them uses the bundle as before. So does one that reads only an older version of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edge_runtime.errors import BundleError, unreadable, wall
from edge_runtime.files.versioned import VersionedFormat

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")


@dataclass(frozen=True)
class NewerFile:
    """A file of a version that this Covey does not read yet."""

    version: int


class _Version(msgspec.Struct):
    format_version: int


@dataclass(frozen=True)
class SideFile:
    """One such file.

    Attributes:
        name: its name in the bundle's folder.
        version: the version that this Covey writes, and reads.
        hint: what to do about one that is missing or damaged.
    """

    name: str
    version: int
    hint: str

    def encode(self, content: msgspec.Struct) -> bytes:
        """Return the file's bytes."""
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    def read(self, folder: Path, expected: type[T]) -> T | NewerFile:
        """Return the file's content, or NewerFile.

        Args:
            folder: the bundle's folder.
            expected: the type of the content.

        Raises:
            BundleError: it is missing or not valid.
            StorageError: descriptors or memory are short.
        """
        try:
            data = (folder / self.name).read_bytes()
        except OSError as error:
            damaged = BundleError(f"the bundle's file {self.name} cannot be read: {error.strerror}", self.hint)
            raise unreadable(error, damaged) from error
        with wall(lambda cause: BundleError(f"{self.name} cannot be read: {cause}", self.hint)):
            version = msgspec.json.decode(data, type=_Version).format_version
        if version > self.version:
            return NewerFile(version)
        content: T = self._format.read(data, expected)
        return content

    @property
    def _format(self) -> VersionedFormat:
        return VersionedFormat(
            self.name,
            self.version,
            msgspec.json.decode,
            BundleError,
            hint=self.hint,
            newer_hint="upgrade Covey on this machine",
            field="format_version",
            field_name="format version",
        )
