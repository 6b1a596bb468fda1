"""Perturbs and replays in NumPy: used where nothing was compiled, and the reference of the compiled kernel.

A table holds the eight terms (±scale) of every byte; looking up the stream's bytes gives a piece's terms. All seeds are
added to one piece before the next, so that piece, terms and table stay in the second-level cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.perturbation.philox import BITS_PER_COUNTER, BITS_PER_WORD, generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.values import FloatVector

_PIECE = 1 << 15
"""Parameters at a time, a multiple of 256: 128 KiB of float32."""
_SEEDS_AT_A_TIME = 64
"""Each has a generator of its own while the pieces are gone through."""

# Row b holds the eight signs of byte b, lowest bit first.
SIGNS_OF_BYTE: FloatVector = (
    1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
).astype(np.float32)


def perturb(
    out: FloatVector,
    clean: FloatVector,
    seeds: NDArray[np.uint64],
    block: int,
    scales: FloatVector,
    offset: int,
) -> None:
    """Write ``clean + scales[0] · z_0 + scales[1] · z_1 + …`` to ``out``; arguments are not checked.

    Args:
        out: float32, shape (n,), written; ``clean`` itself or apart from it.
        clean: float32, shape (n,).
        seeds: uint64, shape (k,), k ≥ 1.
        block: second word of the key.
        scales: float32, shape (k,).
        offset: place of the first parameter in the block.
    """
    for first in range(0, len(seeds), _SEEDS_AT_A_TIME):
        group = slice(first, first + _SEEDS_AT_A_TIME)
        _perturb_group(out, clean if first == 0 else out, seeds[group].tolist(), block, scales[group], offset)


def _perturb_group(
    out: FloatVector, clean: FloatVector, seeds: list[int], block: int, scales: FloatVector, offset: int
) -> None:
    counter, skipped = divmod(offset, BITS_PER_COUNTER)
    streams = [generator(seed, block, counter) for seed in seeds]
    terms_of_bytes = np.empty((-(-min(_PIECE, skipped + out.size) // BITS_PER_WORD) * 8, 8), dtype=np.float32)
    terms_of_byte = np.empty_like(SIGNS_OF_BYTE)
    start = 0
    while start < out.size:
        stop = min(start + _PIECE - skipped, out.size)
        n_words = -(-(skipped + stop - start) // BITS_PER_WORD)
        rows = terms_of_bytes[: 8 * n_words]
        terms = rows.reshape(-1)[skipped : skipped + stop - start]
        target, source = out[start:stop], clean[start:stop]
        for stream, scale in zip(streams, scales, strict=True):
            # A product with ±1 is exact.
            np.multiply(SIGNS_OF_BYTE, scale, out=terms_of_byte)
            stream_bytes = stream.random_raw(n_words).astype("<u8", copy=False).view(np.uint8)
            # No byte is out of the table's range; "clip" spares the copy that "raise" makes.
            np.take(terms_of_byte, stream_bytes, axis=0, out=rows, mode="clip")
            np.add(source, terms, out=target)
            source = target
        start, skipped = stop, 0
