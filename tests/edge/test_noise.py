"""Clipped and noised scalars, and what they are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.forward_only.noise import privatise, secret_rng
from edge_runtime.protocol.privacy import Privacy, check_privacy
from server.job.epsilon import device_epsilon


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


@given(clip=st.floats(1e-3, 1e3), values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_without_noise_scalars_are_only_clipped(clip: float, values: list[float]) -> None:
    scalars = np.array(values, np.float32)
    found = privatise(scalars, Privacy(clip, 0.0), rng())
    assert np.array_equal(found, np.clip(scalars.astype(np.float64), -clip, clip).astype(np.float32))


def test_the_noise_has_the_size_it_says() -> None:
    found = privatise(np.zeros(100_000, np.float32), Privacy(2.0, 3.0), rng())
    assert found.std() == pytest.approx(6.0, rel=0.02)
    assert abs(found.mean()) < 0.1


def test_the_noise_is_not_predictable() -> None:
    assert secret_rng().random() != secret_rng().random()


def test_a_device_asks_for_its_noise() -> None:
    check_privacy(None, None)
    check_privacy(Privacy(1.0, 2.0), 2.0)
    for offered in (None, Privacy(1.0, 1.9)):
        with pytest.raises(ConfigError, match="this device asks for 2 or more"):
            check_privacy(offered, 2.0)


def exact_epsilon(mu: float, delta: float) -> float:
    """ε of a μ-Gaussian mechanism (Balle & Wang, ICML 2018, theorem 8), by bisection."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        try:
            spent = phi(mu / 2 - middle / mu) - math.exp(middle) * phi(-mu / 2 - middle / mu)
        except OverflowError:
            spent = 0.0
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


@pytest.mark.parametrize(("releases", "noise"), [(1, 4.0), (100, 20.0), (960, 50.0)])
def test_epsilon_is_an_upper_bound_and_not_far_above_the_exact_one(releases: int, noise: float) -> None:
    """Composed Gaussians are one Gaussian: sensitivity 2, noise ``noise``, ``releases`` times."""
    exact = exact_epsilon(2 * math.sqrt(releases) / noise, 1e-5)
    found = device_epsilon(releases, noise, 1e-5)
    assert exact <= found <= 1.35 * exact


def test_no_noise_is_no_privacy_and_no_release_spends_none() -> None:
    assert device_epsilon(5, 0.0, 1e-5) == math.inf
    assert device_epsilon(0, 0.0, 1e-5) == 0.0
