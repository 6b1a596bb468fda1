"""An adapter: the trainable parameters as one flat float32 vector, its hash, and the checks it must pass.

An adapter file is the vector's little-endian bytes and nothing else; it is mapped, never copied.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import BundleError, unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.values import FloatVector

CHUNK = 1 << 20
"""Parameters that are hashed, checked or replayed at a time: 4 MiB."""


def adapter_sha256(flat: FloatVector) -> str:
    """Return the adapter's name: the SHA-256 of its file, in hex; it is read in parts, so ``flat`` may be mapped."""
    digest = hashlib.sha256()
    for start in range(0, flat.size, CHUNK):
        digest.update(np.ascontiguousarray(flat[start : start + CHUNK], dtype="<f4").data)
    return digest.hexdigest()


def map_adapter(path: Path, size: int) -> FloatVector:
    """Map an adapter file: float32, (size,), read-only. Neither hash nor values are checked: see check_adapter.

    Raises:
        BundleError: the file's length is not the layout's, it is no file, or it cannot be read.
        StorageError: descriptors or memory are short; the file may be whole.
    """
    try:
        if not path.is_file():
            raise BundleError(f"{path} is not an adapter file", "give a file <sha256>.bin of the folder adapters")
        length = path.stat().st_size
        if length != 4 * size:
            raise BundleError(
                f"the adapter has {length} bytes, the layout needs {4 * size}",
                "use the adapter that belongs to this bundle",
            )
        return np.memmap(path, dtype="<f4", mode="r")
    except OSError as error:
        damaged = BundleError(f"cannot read {path}: {error.strerror}", "fetch the adapter again")
        raise unreadable(error, damaged) from error


def check_finite(theta: FloatVector) -> None:
    """Check that all values are finite.

    Raises:
        BundleError: a value is not finite.
    """
    for start in range(0, theta.size, CHUNK):
        if not np.isfinite(theta[start : start + CHUNK]).all():
            raise BundleError("the adapter holds values that are not finite", "start from an earlier adapter")


def check_adapter(theta: FloatVector, sha256: str) -> None:
    """Check an adapter's hash and that its values are finite.

    Raises:
        BundleError: the hash differs, or a value is not finite.
    """
    if adapter_sha256(theta) != sha256:
        raise BundleError(f"adapter {sha256[:12]} is damaged: its hash differs", "fetch the adapter again")
    check_finite(theta)
