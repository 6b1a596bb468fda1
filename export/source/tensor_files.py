"""Looks into files of weights without loading them: safetensors, and PyTorch's own format.

Whatever a file's format, a tensor that is not made of floats is refused: a cast would take its integers for weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from export.errors import ExportError
from export.source.foreign import AGAIN, check_file, reading
from export.source.pickled import pickled_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000
"""The largest header that the safetensors format allows."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"})
_INDEXES = frozenset({"I64", "BOOL", "int64", "bool"})
"""Types of the buffers that checkpoints hold beside their weights, such as the numbers of the positions."""
_KINDS = {b"PK\x03\x04": "a zip archive, as PyTorch writes it", b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file"}
UNQUANTISED = "give a model that is not quantised, or a GGUF file"


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor; the type by the name that the file's format has for it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_infos(path: Path) -> dict[str, TensorInfo]:
    """Return type and shape of each tensor of a ``.safetensors`` file or of one of PyTorch's own.

    Raises:
        ExportError: the file is a stand-in, is cut or damaged, holds more than tensors, or tensors that are not floats.
    """
    infos = _safetensors_infos(path) if path.suffix == ".safetensors" else _pytorch_infos(path)
    for name, info in infos.items():
        _check_float(path, name, info.dtype)
    return infos


def _check_float(path: Path, name: str, dtype: str) -> None:
    is_buffer = dtype in _INDEXES and not name.endswith((".weight", ".bias"))
    if dtype not in _FLOATS and not is_buffer and not name.endswith(("position_ids", "token_type_ids")):
        raise ExportError(f"{path.name}: {name} is {dtype}, not a float", UNQUANTISED)


def _safetensors_infos(path: Path) -> dict[str, TensorInfo]:
    size = check_file(path)
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        kind = next((text for magic, text in _KINDS.items() if start.startswith(magic)), "something else")
        if len(start) == _LENGTH_BYTES and length > _HEADER_LIMIT_BYTES:
            raise ExportError(f"{path} is not a safetensors file but {kind} ({size} bytes)", AGAIN)
        if len(start) < _LENGTH_BYTES or size < _LENGTH_BYTES + length:
            least = _LENGTH_BYTES + length if len(start) == _LENGTH_BYTES else _LENGTH_BYTES
            raise ExportError(f"{path} is cut within its header: {size} bytes of more than {least}", AGAIN)
        with reading(f"{path} has a damaged header", AGAIN):
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            infos = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
            expected = _LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < expected:
        raise ExportError(f"{path} is cut: {size} bytes of {expected}", AGAIN)
    with reading(f"{path} is damaged", AGAIN), safe_open(path, framework="pt"):
        return infos


def _pytorch_infos(path: Path) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype, shape) for name, (dtype, shape) in pickled_tensors(path).items()}


def count_elements(files: Mapping[str, Mapping[str, TensorInfo]]) -> int:
    """Return the number of elements of all tensors in all files."""
    return sum(info.elements for infos in files.values() for info in infos.values())
