"""Looks into compiled libraries (ELF) without running them: whether a board's kernel can map them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEAST_ALIGNMENT = 16 * 1024
"""Bytes to which a library's segments must be aligned: the kernel of a Raspberry Pi 5 has pages of 16 KiB."""

NO_LIMIT = 1 << 62
"""The alignment of a file that is no library."""

_MAGIC, _ELF_64 = b"\x7fELF", b"\x7fELF\x02\x01"
_HEADER_BYTES, _ENTRY_BYTES = 64, 56
_LOADABLE = 1


def short_aligned(site: Path) -> tuple[str, ...]:
    """Return the libraries under a folder that a kernel with pages of 16 KiB cannot load, as paths in the folder.

    Raises:
        StorageError: a library is damaged, or not of a 64-bit little-endian machine.
    """
    return tuple(
        str(path.relative_to(site))
        for path in sorted(site.rglob("*.so*"))
        if path.is_file() and alignment(path) < LEAST_ALIGNMENT
    )


def alignment(library: Path) -> int:
    """Return the least alignment of a library's loadable segments, in bytes; NO_LIMIT for a file that is no library.

    Raises:
        StorageError: it is damaged, or not of a 64-bit little-endian machine.
    """
    data = library.read_bytes()
    if not data.startswith(_MAGIC):
        return NO_LIMIT
    if not data.startswith(_ELF_64):
        raise StorageError(
            f"{library.name} is a library of another kind of machine",
            "boards need 64-bit wheels (manylinux_…_aarch64, or x86_64): look into the folder of --wheels",
        )
    try:
        found = list(_alignments(data))
    except (struct.error, ValueError) as error:
        raise StorageError(
            f"{library.name} is damaged ({error})",
            "the wheel was cut off: fetch it again (pip cache purge), or look into the folder of --wheels",
        ) from error
    return min(found)


def _alignments(data: bytes) -> Iterator[int]:
    """Yield the alignment of each loadable segment; struct.error or ValueError: the file is damaged."""
    if len(data) < _HEADER_BYTES:
        raise ValueError("its header is cut off")
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if size != _ENTRY_BYTES or offset + size * count > len(data):
        raise ValueError("its program headers are cut off")
    loadable = 0
    for index in range(count):
        kind, _, file_offset, _, _, file_bytes, _, aligned = struct.unpack_from(
            "<IIQQQQQQ", data, offset + index * size
        )
        if kind != _LOADABLE:
            continue
        if file_offset + file_bytes > len(data):
            raise ValueError("a segment is cut off")
        loadable += 1
        yield aligned
    if not loadable:
        raise ValueError("it has no segment to load")
