"""Which token follows: exactly the distribution that the settings describe, and always the same with one seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engines.sampling import LARGEST_SEED, Generation, make_generation, pick_token, uniform
from edge_runtime.errors import ConfigError, TrainingError

LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12)


def kept(logits: list[float], temperature: float, top_p: float) -> dict[int, float]:
    """Return the tokens that may be drawn with their probabilities, computed one by one from the definition."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    total, chosen, reached = math.fsum(weights), [], 0.0
    for token in order:
        chosen.append(token)
        reached += weights[token]
        if reached >= top_p * total:
            break
    within = math.fsum(weights[token] for token in chosen)
    return {token: weights[token] / within for token in chosen}


@given(LOGITS, st.floats(0.01, 20), st.floats(0.01, 1), st.integers(0, LARGEST_SEED), st.integers(0, 9))
def test_only_the_likeliest_tokens_up_to_top_p_are_drawn(
    logits: list[float], temperature: float, top_p: float, seed: int, place: int
) -> None:
    values = np.array(logits, dtype=np.float32)
    token = pick_token(values, Generation(1, temperature, top_p, seed), 0, place)
    # Where top_p meets a sum of probabilities to the last bit, the order of summation decides: one token more is right.
    assert token in kept(logits, temperature, min(1.0, top_p + 1e-9))
    assert token == pick_token(values.copy(), Generation(1, temperature, top_p, seed), 0, place)


@given(LOGITS, st.integers(0, LARGEST_SEED))
def test_without_a_temperature_the_first_likeliest_token_follows(logits: list[float], seed: int) -> None:
    values = np.array(logits, dtype=np.float32)
    assert pick_token(values, Generation(1, seed=seed), 0, 0) == logits.index(max(logits))
    drawn = pick_token(values, Generation(1, 1.0, top_p=1e-9, seed=seed), 0, 0)
    assert logits[drawn] == max(logits)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (1.0, 0.55)])
def test_draws_have_the_probabilities_of_the_settings(temperature: float, top_p: float) -> None:
    """20,000 draws: each share is within five standard deviations of its probability."""
    logits, draws = [0.5, 2.0, -1.0, 1.5, 0.0], 20_000
    values = np.array(logits, dtype=np.float32)
    found = np.bincount(
        [pick_token(values, Generation(1, temperature, top_p, 11), 3, place) for place in range(draws)], minlength=5
    )
    wanted = kept(logits, temperature, top_p)
    for token in range(5):
        share = wanted.get(token, 0.0)
        assert abs(found[token] / draws - share) <= 5 * math.sqrt(share * (1 - share) / draws)


def test_draws_are_the_words_of_philox() -> None:
    """The first word of NumPy's own Philox at the counter, 53 bits of it: the same on every machine."""
    generator = np.random.Philox(key=np.array([7, 2], dtype=np.uint64), counter=np.array([4, 0, 0, 0], dtype=np.uint64))
    assert uniform(7, 2, 5) == float(int(generator.random_raw(1)[0]) >> 11) / 2**53
    assert len({uniform(seed, text, place) for seed in (0, 1) for text in (0, 1) for place in range(50)}) == 200
    assert all(0 <= uniform(0, 0, place) < 1 for place in range(1000))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p"),
        ({"top_p": 0.9}, "without a temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": LARGEST_SEED + 1}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(fields: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Generation(**fields)  # type: ignore[arg-type]


def test_what_is_not_given_has_its_default() -> None:
    assert make_generation(16, None, None, None) == Generation()
    assert make_generation(3, 0.5, 0.9, 4) == Generation(3, 0.5, 0.9, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        pick_token(np.array([0.0, bad], dtype=np.float32), Generation(1, 1.0), 0, 0)
