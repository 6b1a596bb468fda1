"""Perturbations: vectors of ±1 that have the same bits on every machine.

One bit per parameter from Philox 4×64-10 (philox.py), keyed by (seed, block). Parameter i of a block takes bit i of the
stream: bit ``i % 64`` of word ``i // 64``, where words 4k…4k+3 are the output of counter k. A bit of 0 means +1, of 1
means −1.

The generator is counter-based, so any slice can be made alone. No transcendental function is involved and a product
with ±1 is exact, so x86, ARM and GPU agree bit for bit; tests pin golden values. kernel.py chooses the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.perturbation.kernel import kernel
from edge_runtime.perturbation.numpy_kernel import SIGNS_OF_BYTE
from edge_runtime.perturbation.numpy_kernel import perturb as perturb_numpy
from edge_runtime.perturbation.philox import BITS_PER_COUNTER, BITS_PER_WORD, MAX_U64, philox_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.values import FloatVector


FRONT = 0
BACK = 1
"""Values of ``block`` in the Philox key."""


def rademacher(seed: int, block: int, start: int, stop: int) -> FloatVector:
    """Return parameters ``start`` … ``stop``−1 of the perturbation (seed, block).

    Args:
        seed: the perturbation's seed, 0 … 2⁶⁴−1.
        block: FRONT or BACK.
        start: first parameter, counted from the block's first.
        stop: one past the last parameter.

    Returns:
        float32 array of shape (stop − start,), each value +1 or −1.

    Raises:
        ValueError: the range is empty backwards or starts below 0.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"need 0 <= start <= stop, got {start} and {stop}")
    if start == stop:
        return np.empty(0, dtype=np.float32)
    first_counter, skipped_bits = divmod(start, BITS_PER_COUNTER)
    n_words = -(-(skipped_bits + stop - start) // BITS_PER_WORD)
    words = philox_words(seed, block, first_counter, n_words).astype("<u8", copy=False)
    signs = SIGNS_OF_BYTE[words.view(np.uint8)].reshape(-1)
    return signs[skipped_bits : skipped_bits + stop - start]


def perturb_into(out: FloatVector, clean: FloatVector, seed: int, block: int, scale: float) -> None:
    """Write ``clean + scale · z`` to ``out``, z being the perturbation (seed, block).

    Each parameter costs one float32 add: ``scale · z`` is exact, for z is ±1. ``scale`` is rounded to float32 first.
    ``out`` may be ``clean`` itself: that is an update in place.

    Args:
        out: float32, shape (n,), written.
        clean: float32, shape (n,), the whole block.
        seed: the perturbation's seed.
        block: FRONT or BACK.
        scale: ±eps for a perturbation, a coefficient for an update.

    Raises:
        ValueError: shapes differ, an array is not float32, or they overlap without being the same.
        ConfigError: COVEY_KERNEL has a bad value or asks for a missing kernel; see kernel.py.
    """
    perturb_many_into(out, clean, (seed,), block, (scale,))


def perturb_many_into(
    out: FloatVector,
    clean: FloatVector,
    seeds: Sequence[int],
    block: int,
    scales: Sequence[float],
    offset: int = 0,
) -> None:
    """Write ``clean + scales[0] · z_0 + scales[1] · z_1 + …`` to ``out``, in one pass over memory.

    The bits are those of one perturb_into per seed, in this order.

    Args:
        out: float32, shape (n,), written; may be ``clean`` itself.
        clean: float32, shape (n,): a block or a slice of it.
        seeds: the perturbations' seeds, each 0 … 2⁶⁴−1.
        block: FRONT or BACK.
        scales: one for each seed; rounded to float32 first.
        offset: where the slice starts, in parameters from the block's first.

    Raises:
        ValueError: shapes or numbers differ or are out of range, an array is not float32, or they overlap without
            being the same.
        ConfigError: COVEY_KERNEL has a bad value or asks for a missing kernel; see kernel.py.
    """
    _check_arrays(out, clean)
    if len(seeds) != len(scales):
        raise ValueError(f"need one scale for each seed, got {len(seeds)} seeds and {len(scales)} scales")
    if not (0 <= block <= MAX_U64 and all(0 <= seed <= MAX_U64 for seed in seeds)):
        raise ValueError(f"seeds and block must be in 0 … 2**64-1, got {seeds} and {block}")
    if not 0 <= offset <= MAX_U64 - out.size:
        raise ValueError(f"the slice must lie in 0 … 2**64-1, got offset {offset}")
    if not out.size:
        return
    if not seeds:
        np.copyto(out, clean)
        return
    plain = all(array.flags.c_contiguous and array.flags.aligned for array in (out, clean))
    perturb = kernel().perturb if plain else perturb_numpy
    perturb(out, clean, np.array(seeds, dtype=np.uint64), block, np.array(scales, dtype=np.float32), offset)


def _check_arrays(out: FloatVector, clean: FloatVector) -> None:
    if out.shape != clean.shape or out.ndim != 1:
        raise ValueError(f"out and clean must be flat and equal in length, got {out.shape} and {clean.shape}")
    if out.dtype != np.dtype(np.float32) or clean.dtype != np.dtype(np.float32) or not out.flags.writeable:
        raise ValueError(f"out and clean must be float32 and out writeable, got {out.dtype} and {clean.dtype}")
    same = out.ctypes.data == clean.ctypes.data and out.strides == clean.strides
    if not same and np.may_share_memory(out, clean):
        raise ValueError("out and clean must be the same array or have no memory in common")
