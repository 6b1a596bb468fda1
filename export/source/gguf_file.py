"""Looks into a GGUF file: whether it is whole, and whether its tensors can be dequantised.

The gguf library reads a file without looking where it ends. This walk over the header (GGUF's specification, versions 2
and 3) never reads beyond the end, whatever lengths the file gives.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import gguf
import numpy as np

from export.errors import ExportError
from export.source.foreign import AGAIN, check_file, reading

if TYPE_CHECKING:
    from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value, by its type."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_ALIGNMENT_KEY = b"general.alignment"
_NESTING_LIMIT = 8
_DIMENSIONS_LIMIT = 8
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_INTEGERS = ("I8", "I16", "I32", "I64")


class _EndError(Exception):
    """The file ends before what its header announces."""


@dataclass
class _Walk:
    """A position in the header."""

    data: mmap.mmap
    order: str = "<"
    at: int = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data) - self.at:
            raise _EndError
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        """Return the next whole number, by its code in struct."""
        return int(struct.unpack(self.order + code, self.take(struct.calcsize(code)))[0])

    def text(self) -> bytes:
        """Return the next string."""
        return self.take(self.number("Q"))

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a metadata value."""
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY and depth < _NESTING_LIMIT:
            item, count = self.number("I"), self.number("Q")
            if item in _SIZES:
                self.take(_SIZES[item] * count)
                return
            if count > len(self.data):
                raise _EndError
            for _ in range(count):
                self.skip(item, depth + 1)
        elif kind in _SIZES:
            self.take(_SIZES[kind])
        else:
            raise ValueError(f"a metadata value of the unknown type {kind}")


@dataclass(frozen=True)
class GgufInfo:
    """Number of tensors in a GGUF file, and of their elements."""

    tensors: int
    elements: int


def check_gguf(path: Path) -> GgufInfo:
    """Check that a GGUF file is whole and holds tensors that can be read as floats.

    Raises:
        ExportError: it is a stand-in, another format, one part of several, cut, damaged, or of unreadable tensors.
    """
    size = check_file(path)
    part = _PART.search(path.name)
    if part is not None and int(part[1]) > 1:
        raise ExportError(
            f"{path} is one of {int(part[1])} parts of a split GGUF file",
            "merge the parts with llama.cpp's llama-gguf-split --merge, and leave the whole file alone in the folder",
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        if size >= 4 and data[:4] != b"GGUF":
            raise ExportError(f"{path} is not a GGUF file: it begins with {data[:4]!r} ({size} bytes)", AGAIN)
        try:
            with reading(f"{path} is damaged", AGAIN):
                try:
                    tensors, alignment = _read_header(path, walk)
                except _EndError:
                    raise ExportError(
                        f"{path} is cut or damaged: it ends within its header ({size} bytes)", AGAIN
                    ) from None
        finally:
            begin = walk.at
    begin += -begin % alignment
    expected = max((begin + offset + count for _, _, offset, count in tensors), default=begin)
    if size < expected:
        raise ExportError(f"{path} is cut: {size} bytes of {expected}", AGAIN)
    return GgufInfo(len(tensors), sum(elements for _, elements, _, _ in tensors))


def _read_header(path: Path, walk: _Walk) -> tuple[list[tuple[str, int, int, int]], int]:
    """Return name, elements, offset and bytes of each tensor, and the alignment of their data."""
    walk.take(4)
    version = walk.number("I")
    if version & 0xFFFF == 0:
        walk.order, version = ">", version >> 24
    if version not in (2, 3):
        raise ExportError(f"{path} is of GGUF version {version}", "convert it again; versions 2 and 3 are read")
    n_tensors, n_values = walk.number("Q"), walk.number("Q")
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    for _ in range(n_values):
        key, kind = walk.text(), walk.number("I")
        if key == _ALIGNMENT_KEY and kind == _UINT32:
            alignment = walk.number("I")
        else:
            walk.skip(kind)
    if alignment <= 0:
        raise ValueError("its alignment is 0")
    readable: dict[int, tuple[int, int]] = {}
    tensors = []
    for _ in range(n_tensors):
        name, n_dims = walk.text().decode(), walk.number("I")
        if n_dims > _DIMENSIONS_LIMIT:
            raise ValueError(f"{name!r} has {n_dims} dimensions")
        elements = prod(walk.number("Q") for _ in range(n_dims))
        kind, offset = walk.number("I"), walk.number("Q")
        if kind not in readable:
            readable[kind] = _block(path, name, kind)
        block, size = readable[kind]
        tensors.append((name, elements, offset, elements // block * size))
    return tensors, alignment


def _block(path: Path, name: str, kind: int) -> tuple[int, int]:
    """Return elements and bytes of a block of a type; refuse types that do not give floats."""
    hint = "give a GGUF file of another quantisation (such as Q8_0 or F16), or the model's safetensors"
    try:
        dtype = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise ExportError(f"{path}: {name} is of type {kind}, which the gguf library does not know", hint) from error
    if dtype.name in _INTEGERS:
        raise ExportError(f"{path}: {name} is {dtype.name}, not a float", hint)
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    if dtype.name in ("F32", "F16"):
        return block, size
    try:
        gguf.dequantize(np.zeros(size, dtype=np.uint8), dtype)
    except NotImplementedError as error:
        raise ExportError(f"{path}: {name} is {dtype.name}, which cannot be dequantised here", hint) from error
    return block, size
