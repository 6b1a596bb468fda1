"""Copies a stock image: unpacks it, checks its SHA-256, and leaves holes where it is empty, to save room here."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK_BYTES = 1 << 20
_HOLE_BYTES = 1 << 16
_SECTOR_BYTES = 512
_XZ, _GZIP, _ZIP = b"\xfd7zXZ\x00", b"\x1f\x8b", b"PK\x03\x04"
_DAMAGED = "download it again, and compare its SHA-256 with the one on its download page"


@dataclass(frozen=True)
class Copied:
    """A stock image that was copied.

    Attributes:
        size_bytes: of the unpacked image.
        sha256: of the file as it was downloaded.
        unpacked_sha256: of the image in it.
    """

    size_bytes: int
    sha256: str
    unpacked_sha256: str


class _Counted(io.RawIOBase):
    """A file whose bytes are counted and hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.read_bytes, self.hash = 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed allows any buffer
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.read_bytes += len(data)
        self.hash.update(data)
        return len(data)


def copy_image(source: Path, out: Path, expected_sha256: str | None, progress: Callable[[int, int], None]) -> Copied:
    """Unpack a stock image into a new file; blocks of zeros become holes.

    Args:
        source: ``.img``, ``.img.xz``, ``.img.gz`` or ``.zip``, told apart by their first bytes.
        out: the file that is written; what it held before is lost.
        expected_sha256: of the file as downloaded or of the image in it; None: the one in ``SOURCE.sha256``, where
            there is such a file.
        progress: is called with the bytes of the source that are read, and with its size.

    Raises:
        ConfigError: the file is no image, or its SHA-256 is another one.
        StorageError: it is cut short or damaged, or ``out`` cannot be written.
    """
    expected = expected_sha256.lower() if expected_sha256 is not None else _published(source)
    try:
        whole_bytes = source.stat().st_size
        with ExitStack() as stack:
            raw = _Counted(stack.enter_context(source.open("rb")))
            packed = io.BufferedReader(raw, BLOCK_BYTES)
            if packed.peek(len(_ZIP)).startswith(_ZIP):
                return _copy_zip(source, out, expected, progress)
            image = _unpacked(packed, source)
            target = stack.enter_context(out.open("wb"))
            size, unpacked = _copy(image, target, lambda _size: progress(raw.read_bytes, whole_bytes))
            while packed.read(BLOCK_BYTES):  # what follows the packed image belongs to the file's hash
                pass
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise StorageError(f"{source} is cut short or damaged ({error})", _DAMAGED) from error
    except OSError as error:
        raise storage_error(error, source) from error
    return _checked(source, Copied(size, raw.hash.hexdigest(), unpacked), expected)


def _copy_zip(source: Path, out: Path, expected: str | None, progress: Callable[[int, int], None]) -> Copied:
    """Unpack the one image of a ZIP archive, whose directory is at its end."""
    whole = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
    try:
        with zipfile.ZipFile(source) as archive:
            images = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".img")]
            if len(images) != 1:
                names = ", ".join(entry.filename for entry in archive.infolist()[:5]) or "nothing"
                raise ConfigError(f"{source} has no single .img in it, but {names}", "unpack it, and give the .img")
            with archive.open(images[0]) as image, out.open("wb") as target:
                size, unpacked = _copy(image, target, lambda size: progress(size, images[0].file_size))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise StorageError(f"{source} is cut short or damaged ({error})", _DAMAGED) from error
    return _checked(source, Copied(size, whole.hexdigest(), unpacked), expected)


def _unpacked(packed: io.BufferedReader[_Counted], source: Path) -> IO[bytes]:
    start = packed.peek(len(_XZ))
    if start.startswith(_XZ):
        return lzma.open(packed)
    if start.startswith(_GZIP):
        return gzip.open(packed)  # type: ignore[return-value]  # it is open for reading bytes
    if not packed.peek(1):
        raise ConfigError(f"{source} is empty", _DAMAGED)
    return packed


def _copy(image: IO[bytes], target: IO[bytes], step: Callable[[int], None]) -> tuple[int, str]:
    """Copy with holes; ``step`` is called with the bytes that are copied. Return the size in bytes and the SHA-256."""
    size, found = 0, hashlib.sha256()
    zeros = bytes(_HOLE_BYTES)
    while block := image.read(BLOCK_BYTES):
        found.update(block)
        for start in range(0, len(block), _HOLE_BYTES):
            part = block[start : start + _HOLE_BYTES]
            if part == zeros[: len(part)]:
                target.seek(len(part), os.SEEK_CUR)
            else:
                target.write(part)
        size += len(block)
        step(size)
    target.truncate(size)
    target.flush()
    os.fsync(target.fileno())
    return size, found.hexdigest()


def _published(source: Path) -> str | None:
    """Return the SHA-256 in ``SOURCE.sha256``, as download pages offer it; None: there is no such file."""
    beside = source.with_name(source.name + ".sha256")
    if not beside.is_file():
        return None
    word = beside.read_text(errors="replace").split()
    if not word or len(word[0]) != hashlib.sha256().digest_size * 2:
        raise ConfigError(f"{beside} has no SHA-256 in it", "download it again, or give --sha256")
    return word[0].lower()


def _checked(source: Path, copied: Copied, expected: str | None) -> Copied:
    if expected is not None and expected not in (copied.sha256, copied.unpacked_sha256):
        raise ConfigError(
            f"{source} has SHA-256 {copied.sha256}, and {expected} was expected", "download the image again"
        )
    if copied.size_bytes % _SECTOR_BYTES:
        raise ConfigError(f"{source} is no disk image: {copied.size_bytes} bytes are no whole sectors", _DAMAGED)
    return copied
