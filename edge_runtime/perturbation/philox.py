"""Philox 4×64-10 by NumPy: the stream whose bits are the signs of a perturbation.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the generator of Random123 and of NumPy. It is
counter-based: any part of the stream can be made alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS_PER_WORD = 64
BITS_PER_COUNTER = 4 * BITS_PER_WORD
MAX_U64 = 2**64 - 1
_COUNTER_MODULUS = 2**256


def generator(seed: int, block: int, first_counter: int) -> np.random.Philox:
    """Return a generator whose first ``random_raw`` is the first word of ``first_counter``.

    Args:
        seed: first key word, 0 … 2⁶⁴−1.
        block: second key word, 0 … 2⁶⁴−1.
        first_counter: 0 … 2²⁵⁶−1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0 <= seed <= MAX_U64 and 0 <= block <= MAX_U64):
        raise ValueError(f"seed and block must be in 0 … 2**64-1, got {seed} and {block}")
    if not 0 <= first_counter < _COUNTER_MODULUS:
        raise ValueError(f"bad range: first_counter={first_counter}")
    # NumPy increments its counter before it computes an output: start one lower.
    start = (first_counter - 1) % _COUNTER_MODULUS
    counter = np.array([(start >> (64 * word)) & MAX_U64 for word in range(4)], dtype=np.uint64)
    return np.random.Philox(key=np.array([seed, block], dtype=np.uint64), counter=counter)


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
    if n_words < 0:
        raise ValueError(f"bad range: n_words={n_words}")
    return generator(seed, block, first_counter).random_raw(n_words)
