"""Tensors mapped from a safetensors file: read-only views, no copy, so a tensor nobody touches is never paged in.

The safetensors library reads NumPy tensors into memory of their own; a device that holds one copy of the weights for
several graphs needs views. Format: 8 bytes header length (little-endian), a JSON header, the data.
"""

from __future__ import annotations

import json
import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_MAX_HEADER_BYTES = 100_000_000

Tensor = np.ndarray[tuple[Any, ...], np.dtype[Any]]


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map every tensor of a safetensors file.

    Returns:
        Read-only arrays (float32 or int64) that share one mapping of the file, by name.

    Raises:
        BundleError: the file is missing, truncated or of an unknown element type.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 2 <= header_size <= min(_MAX_HEADER_BYTES, size - 8):
                raise BundleError(f"{path.name} is not a safetensors file", "fetch or export the bundle again")
            header: dict[str, Any] = json.loads(file.read(header_size))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", "fetch or export the bundle again") from error
    except ValueError as error:
        raise BundleError(f"{path.name} has a broken header: {error}", "fetch or export the bundle again") from error
    data_start = 8 + header_size
    return {
        name: _view(path.name, data, data_start, name, entry)
        for name, entry in header.items()
        if name != "__metadata__"
    }


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
    tensors = map_tensors(path)
    flat = None
    if list(tensors) == list(names) and sum(tensor.size for tensor in tensors.values()) == size:
        starts = [tensor.__array_interface__["data"][0] for tensor in tensors.values()]
        stops = [start + tensor.nbytes for start, tensor in zip(starts, tensors.values(), strict=True)]
        if starts[1:] == stops[:-1] and all(tensor.dtype == np.float32 for tensor in tensors.values()):
            first = next(iter(tensors.values()))
            offset = path.stat().st_size - 4 * size
            flat = np.memmap(path, dtype="<f4", mode="r", offset=offset)
            if flat[: first.size].tobytes() != first.tobytes():
                flat = None
    if flat is None:
        raise BundleError(f"{path.name} does not hold the layout's tensors in its order", "export the bundle again")
    return flat


def _view(file: str, data: mmap.mmap, data_start: int, name: str, entry: Any) -> Tensor:  # noqa: ANN401 parsed JSON
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(int(side) for side in entry["shape"])
        begin, end = (data_start + int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file}: bad entry for {name}: {error!r}", "fetch or export the bundle again") from error
    count = math.prod(shape)
    if not data_start <= begin <= end <= len(data) or end - begin != count * dtype.itemsize:
        raise BundleError(f"{file}: {name} lies outside the file", "fetch or export the bundle again")
    return np.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
