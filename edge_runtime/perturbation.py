"""Perturbations: vectors of ±1 that have the same bits on every machine.

One bit a parameter from Philox 4×64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the
generator of Random123 and of NumPy), keyed by (seed, block). Parameter i of a block takes bit i of the stream: bit
``i % 64`` of word ``i // 64``, where words 4k…4k+3 are the output of counter k. A bit of 0 means +1, of 1 means −1.

The generator is counter-based, so any slice can be made alone. No transcendental function is involved and a product
with ±1 is exact, so x86, ARM and GPU agree bit for bit; tests pin golden values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FloatVector = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]

FRONT = 0
BACK = 1
"""Values of ``block`` in the Philox key."""

_WORDS_PER_COUNTER = 4
_BITS_PER_WORD = 64
_BITS_PER_COUNTER = _WORDS_PER_COUNTER * _BITS_PER_WORD
_MAX_U64 = 2**64 - 1
_COUNTER_MODULUS = 2**256
_CHUNK_BITS = 1 << 18
"""Parameters expanded at a time: 1 MiB of float32, which stays in a Pi's cache."""

# Row b holds the eight signs of byte b, lowest bit first: indexing with raw bytes expands a perturbation.
_SIGNS_OF_BYTE: FloatVector = (
    1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
).astype(np.float32)


def philox_words(seed: int, block: int, first_counter: int, n_words: int) -> NDArray[np.uint64]:
    """Return raw Philox 4×64-10 output.

    Args:
        seed: first key word, 0 … 2⁶⁴−1.
        block: second key word, 0 … 2⁶⁴−1.
        first_counter: counter of the first output, 0 … 2²⁵⁶−1.
        n_words: how many 64-bit words.

    Returns:
        uint64 array of shape (n_words,).

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0 <= seed <= _MAX_U64 and 0 <= block <= _MAX_U64):
        raise ValueError(f"seed and block must be in 0 … 2**64-1, got {seed} and {block}")
    if n_words < 0 or not 0 <= first_counter < _COUNTER_MODULUS:
        raise ValueError(f"bad range: first_counter={first_counter}, n_words={n_words}")
    # NumPy increments its counter before it computes an output: start one lower.
    start = (first_counter - 1) % _COUNTER_MODULUS
    counter = np.array([(start >> (64 * word)) & _MAX_U64 for word in range(4)], dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed, block], dtype=np.uint64), counter=counter)
    return generator.random_raw(n_words)


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
    first_counter, skipped_bits = divmod(start, _BITS_PER_COUNTER)
    n_words = -(-(skipped_bits + stop - start) // _BITS_PER_WORD)
    words = philox_words(seed, block, first_counter, n_words).astype("<u8", copy=False)
    signs = _SIGNS_OF_BYTE[words.view(np.uint8)].reshape(-1)
    return signs[skipped_bits : skipped_bits + stop - start]


def perturb_into(out: FloatVector, clean: FloatVector, seed: int, block: int, scale: float) -> None:
    """Write ``clean + scale · z`` to ``out``, z being the perturbation (seed, block).

    Each parameter costs one float32 multiply (exact, for z is ±1) and one float32 add. ``scale`` is rounded to
    float32 first. ``out`` may be ``clean`` itself: that is an update in place.

    Args:
        out: float32, shape (n,), written.
        clean: float32, shape (n,), the whole block.
        seed: the perturbation's seed.
        block: FRONT or BACK.
        scale: ±eps for a perturbation, a coefficient for an update.

    Raises:
        ValueError: the shapes differ.
    """
    if out.shape != clean.shape or out.ndim != 1:
        raise ValueError(f"out and clean must be flat and equal in length, got {out.shape} and {clean.shape}")
    factor = np.float32(scale)
    for start in range(0, clean.size, _CHUNK_BITS):
        stop = min(start + _CHUNK_BITS, clean.size)
        step = rademacher(seed, block, start, stop)
        np.multiply(step, factor, out=step)
        np.add(clean[start:stop], step, out=out[start:stop])


def perturb_many_into(
    out: FloatVector,
    clean: FloatVector,
    seeds: Sequence[int],
    block: int,
    scales: Sequence[float],
    offset: int = 0,
) -> None:
    """Write ``clean + scales[0] · z_0 + scales[1] · z_1 + …`` to ``out``, in one pass over memory.

    The bits are those of adding one perturbation after the other.

    Args:
        out: float32, shape (n,), written; may be ``clean`` itself.
        clean: float32, shape (n,): parameters ``offset`` … ``offset + n − 1`` of the block.
        seeds: the perturbations' seeds; none copies ``clean``.
        block: FRONT or BACK.
        scales: a coefficient for each seed, rounded to float32.
        offset: where in the block ``clean`` begins.

    Raises:
        ValueError: the shapes or the numbers of seeds and scales differ.
    """
    if out.shape != clean.shape or out.ndim != 1 or len(seeds) != len(scales):
        raise ValueError(f"shapes {out.shape} and {clean.shape}, {len(seeds)} seeds and {len(scales)} scales differ")
    for start in range(0, clean.size, _CHUNK_BITS):
        stop = min(start + _CHUNK_BITS, clean.size)
        if out is not clean:
            np.copyto(out[start:stop], clean[start:stop])
        for seed, scale in zip(seeds, scales, strict=True):
            step = rademacher(seed, block, offset + start, offset + stop)
            np.multiply(step, np.float32(scale), out=step)
            np.add(out[start:stop], step, out=out[start:stop])
