"""Tensors mapped from a safetensors file: read-only views, no copy, so a tensor nobody touches is never paged in.

The safetensors library reads NumPy tensors into memory of their own; a device that holds one copy of the weights for
several graphs needs views. Format: 8 bytes header length (little-endian), a JSON header, the data.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import BundleError, unreadable, wall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edge_runtime.values import Tensor

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_MAX_HEADER_BYTES = 100_000_000
_HINT = "fetch or export the bundle again"


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map every tensor of a safetensors file.

    Returns:
        Read-only arrays (float32, int64 or uint8) that share one mapping of the file, by name.

    Raises:
        BundleError: the file is missing, truncated or of an unknown element type.
    """
    data, data_start, header = _open(path)
    return {name: _view(path.name, data, data_start, name, entry) for name, entry in header.items()}


def tensor_offsets(path: Path) -> dict[str, int]:
    """Return where each tensor of a safetensors file begins in it, in bytes, by name.

    Raises:
        BundleError: see map_tensors.
    """
    data, data_start, header = _open(path)
    for name, entry in header.items():
        _view(path.name, data, data_start, name, entry)
    return {name: data_start + int(entry["data_offsets"][0]) for name, entry in header.items()}


def forget_pages(tensors: Iterable[Tensor]) -> None:
    """Take the pages of mapped tensors out of this process's memory; whoever reads them again gets them from the file.

    Args:
        tensors: results of map_tensors. The pages at their ends, which they may share with others, stay.
    """
    for tensor in tensors:
        mapping: Any = tensor
        while not isinstance(mapping, mmap.mmap):
            mapping = mapping.obj if isinstance(mapping, memoryview) else mapping.base
        begin = np.frombuffer(mapping, np.uint8).ctypes.data
        offset = tensor.ctypes.data - begin
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < stop:
            mapping.madvise(mmap.MADV_DONTNEED, first, stop - first)


def map_flat(path: Path, names: Sequence[str], size: int) -> Tensor:
    """Map the data of a safetensors file as one vector.

    Args:
        path: the file; its tensors are float32 and lie one after the other in the order of ``names``.
        names: of all its tensors.
        size: elements in all.

    Returns:
        A read-only float32 array of shape (size,).

    Raises:
        BundleError: the file is not like that.
    """
    data, data_start, header = _open(path)
    tensors = {name: _view(path.name, data, data_start, name, entry) for name, entry in header.items()}
    stops = list(itertools.accumulate(tensor.nbytes for tensor in tensors.values()))
    in_order = all(
        entry["dtype"] == "F32" and entry["data_offsets"][1] == stop
        for entry, stop in zip(header.values(), stops, strict=True)
    )
    if list(header) != list(names) or not in_order or stops[-1:] != [4 * size]:
        raise BundleError(f"{path.name} does not hold the layout's tensors in its order", "export the bundle again")
    return np.frombuffer(data, dtype="<f4", count=size, offset=data_start)


def encode_header(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> bytes:
    """Return what stands before the data in a safetensors file of float32 tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file: float32 tensors in the order given, equal bytes for equal input."""
    head = encode_header({name: tensor.shape for name, tensor in tensors.items()}, metadata)
    data = b"".join(np.ascontiguousarray(tensor, dtype="<f4").tobytes() for tensor in tensors.values())
    return head + data


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        BundleError: see map_tensors.
    """
    metadata = _header(path)[1].get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data begins in a file, and its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 2 <= header_size <= min(_MAX_HEADER_BYTES, size - 8):
                raise BundleError(f"{path.name} is not a safetensors file", _HINT)
            text = file.read(header_size)
    except OSError as error:
        raise unreadable(error, BundleError(f"cannot read {path}: {error.strerror}", _HINT)) from error
    with wall(lambda cause: BundleError(f"{path.name} has a broken header: {cause}", _HINT)):
        header: dict[str, Any] = json.loads(text)
    if not isinstance(header, dict):
        raise BundleError(f"{path.name} has a broken header: not an object", _HINT)
    return 8 + header_size, header


def _open(path: Path) -> tuple[mmap.mmap, int, dict[str, Any]]:
    """Map a file; return the mapping, where the data begins in it, and the entry of each tensor."""
    data_start, header = _header(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(error, BundleError(f"cannot read {path}: {error.strerror}", _HINT)) from error
    return data, data_start, {name: entry for name, entry in header.items() if name != "__metadata__"}


def _view(file: str, data: mmap.mmap, data_start: int, name: str, entry: Any) -> Tensor:  # noqa: ANN401 parsed JSON
    with wall(lambda cause: BundleError(f"{file}: bad entry for {name}: {cause}", _HINT)):
        kind, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"])
        begin, end = (data_start + int(offset) for offset in entry["data_offsets"])
        if kind not in _DTYPES:
            raise BundleError(f"{file}: {name} has element type {kind}, Covey reads {', '.join(_DTYPES)}", _HINT)
        dtype, count = _DTYPES[kind], math.prod(shape)
        if not data_start <= begin <= end <= len(data) or end - begin != count * dtype.itemsize:
            raise BundleError(f"{file}: {name} lies outside the file", _HINT)
        return np.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
