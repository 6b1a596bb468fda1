"""Perturbations: published known answers, numpy's own generator, slices, golden bits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.perturbation.perturb import BACK, FRONT, perturb_into, rademacher
from edge_runtime.perturbation.philox import philox_words

SEEDS = st.integers(0, 2**64 - 1)

# Random123's kat_vectors, philox4x64 with 10 rounds: counter words, key words, output words.
_ONES = 2**64 - 1
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (_ONES,) * 4,
        (_ONES, _ONES),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    first = sum(word << (64 * index) for index, word in enumerate(counter))
    assert tuple(int(word) for word in philox_words(key[0], key[1], first, 4)) == expected


def test_philox_is_numpys_generator() -> None:
    """NumPy counts up before its first output: its stream from 0 is ours from 1."""
    generator = np.random.Philox(key=np.array([7, BACK], dtype=np.uint64))
    assert np.array_equal(philox_words(7, BACK, 1, 64), generator.random_raw(64))


@given(seed=SEEDS, start=st.integers(0, 3000), length=st.integers(0, 3000))
def test_any_slice_can_be_made_alone(seed: int, start: int, length: int) -> None:
    whole = rademacher(seed, FRONT, 0, start + length)
    assert np.array_equal(rademacher(seed, FRONT, start, start + length), whole[start:])


def test_bit_i_is_parameter_i() -> None:
    words = philox_words(3, BACK, 0, 5)
    bits = [(int(words[i // 64]) >> (i % 64)) & 1 for i in range(320)]
    assert rademacher(3, BACK, 0, 320).tolist() == [1.0 - 2.0 * bit for bit in bits]


def test_golden_bits() -> None:
    """Pinned: a change here changes every adapter that was ever replayed."""
    bits = np.concatenate([rademacher(seed, block, 0, 100_003) for seed in (0, 1, 2**64 - 1) for block in (0, 1)])
    digest = hashlib.sha256((bits < 0).tobytes()).hexdigest()
    assert digest == "6dbc3c9349af903651f88866594280c9e728f7c2cf1a7e4405e68e346ce8e1a3"


def test_signs_are_balanced_and_blocks_differ() -> None:
    a, b = rademacher(1, FRONT, 0, 100_000), rademacher(1, BACK, 0, 100_000)
    assert set(np.unique(a)) == {-1.0, 1.0}
    assert abs(a.mean()) < 4 / np.sqrt(a.size)
    assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


@given(seed=SEEDS, size=st.integers(1, 2000), scale=st.floats(-10, 10, width=32))
def test_perturbing_is_one_multiply_and_one_add(seed: int, size: int, scale: float) -> None:
    clean = np.linspace(-1, 1, size, dtype=np.float32)
    before = clean.copy()
    out = np.empty_like(clean)
    perturb_into(out, clean, seed, BACK, scale)
    assert np.array_equal(clean, before)
    expected = clean + np.float32(scale) * rademacher(seed, BACK, 0, size)
    assert out.tobytes() == expected.astype(np.float32).tobytes()
    perturb_into(clean, clean, seed, BACK, scale)
    assert clean.tobytes() == out.tobytes()


def test_large_blocks_are_made_in_chunks_with_the_same_bits() -> None:
    size = (1 << 18) * 2 + 77
    out, clean = np.empty(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    perturb_into(out, clean, 9, FRONT, 1.0)
    assert np.array_equal(out, rademacher(9, FRONT, 0, size))


@pytest.mark.parametrize("arguments", [(-1, 0, 0, 1), (0, 2**64, 0, 1), (0, 0, -1, 1), (0, 0, 0, -1)])
def test_bad_ranges_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError):
        philox_words(*arguments)


def test_bad_slices_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        rademacher(0, 0, 5, 4)
    with pytest.raises(ValueError, match="length"):
        perturb_into(np.zeros(3, np.float32), np.zeros(4, np.float32), 0, 0, 1.0)
