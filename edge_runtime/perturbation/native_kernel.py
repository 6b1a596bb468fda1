"""Perturb and replay by the compiled library (``native/kernel/perturb.c``), loaded with ctypes.

``setup.py`` builds the library where there is a C compiler. Before it is used it must give NumPy's bits on a sample.
ctypes lets other Python threads run during a call.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.perturbation import numpy_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edge_runtime.values import FloatVector

    Perturb = Callable[[FloatVector, FloatVector, NDArray[np.uint64], int, FloatVector, int], None]

LIBRARY = Path(__file__).parents[1] / "native" / "perturb.so"
_ABI_VERSION = 1
_U64 = ctypes.c_uint64
_POINTER = ctypes.c_void_p


class KernelMissingError(Exception):
    """The library cannot be used; the message says why."""


def load(path: Path = LIBRARY) -> Perturb:
    """Load the library and check it.

    Returns:
        A function with the arguments of numpy_kernel.perturb; arrays must be contiguous and aligned float32 or uint64.

    Raises:
        KernelMissingError: there is none, it is of another version, or its bits are wrong.
    """
    if sys.byteorder != "little":
        raise KernelMissingError("the machine is big-endian")
    if not path.is_file():
        raise KernelMissingError("it was not built: no C compiler at install time, or a wheel for every platform")
    try:
        library = ctypes.CDLL(str(path))
        function, abi = library.covey_perturb, library.covey_perturb_abi
    except (OSError, AttributeError) as error:
        raise KernelMissingError(f"it does not load: {error}") from error
    abi.restype = ctypes.c_uint32
    if (found := abi()) != _ABI_VERSION:
        raise KernelMissingError(f"it has interface {found}, not {_ABI_VERSION}: install again")
    function.argtypes = [_POINTER, _POINTER, _U64, _U64, _POINTER, _POINTER, _U64, _U64]
    function.restype = None

    def perturb(
        out: FloatVector, clean: FloatVector, seeds: NDArray[np.uint64], block: int, scales: FloatVector, offset: int
    ) -> None:
        function(
            out.ctypes.data,
            clean.ctypes.data,
            out.size,
            offset,
            seeds.ctypes.data,
            scales.ctypes.data,
            seeds.size,
            block,
        )

    _check(perturb)
    return perturb


def _check(perturb: Perturb) -> None:
    # Odd ends, whole counters, more than one tile, two seeds: 5000 parameters take 50 µs.
    clean = np.linspace(-1, 1, 5000, dtype=np.float32)
    seeds = np.array([3, 2**64 - 1], dtype=np.uint64)
    scales = np.array([0.1, -1e-3], dtype=np.float32)
    out, expected = np.empty_like(clean), np.empty_like(clean)
    perturb(out, clean, seeds, 1, scales, 77)
    numpy_kernel.perturb(expected, clean, seeds, 1, scales, 77)
    if out.tobytes() != expected.tobytes():
        raise KernelMissingError("its bits are not NumPy's on this machine: please report the compiler and the CPU")
