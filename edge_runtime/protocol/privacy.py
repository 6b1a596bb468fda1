"""Differential privacy on the device: scalars are clipped and noised before they are used or sent.

Every scalar lies in [−clip, clip] before the noise, whatever the device's rows are, so one scalar reveals at most
2·clip of difference: the Gaussian mechanism at device level, without trust in the server. The device's own local model
uses the noised scalars too, so nothing else of its rows leaves it. The losses of a private round are not reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.perturbation.perturb import FloatVector


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scalars are protected.

    Attributes:
        clip: largest absolute value of a scalar.
        noise_multiplier: standard deviation of the noise, as a multiple of ``clip``; 0 only clips.
    """

    clip: Annotated[float, msgspec.Meta(gt=0, le=1e5)]
    noise_multiplier: Annotated[float, msgspec.Meta(ge=0, le=1e3)]


def privatise(scalars: FloatVector, privacy: Privacy, rng: np.random.Generator) -> FloatVector:
    """Return the scalars clipped and noised: float32, the same shape.

    Args:
        scalars: float32, any shape.
        privacy: the bound and the noise.
        rng: must not be predictable: see secret_rng.
    """
    clipped = np.clip(scalars.astype(np.float64), -privacy.clip, privacy.clip)
    noise = rng.normal(0.0, privacy.noise_multiplier * privacy.clip, scalars.shape)
    noised: FloatVector = (clipped + noise).astype(np.float32)
    return noised


def secret_rng() -> np.random.Generator:
    """Return a generator that is seeded from the operating system's entropy, never from the job."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence()))


def check_privacy(offered: Privacy | None, least_noise_multiplier: float | None) -> None:
    """Check that a plan protects the device as its owner asks.

    Raises:
        ConfigError: it does not; the device then does not train.
    """
    if least_noise_multiplier is None:
        return
    noise = 0.0 if offered is None else offered.noise_multiplier
    if noise < least_noise_multiplier:
        raise ConfigError(
            f"the job's noise_multiplier is {noise:g}, this device asks for {least_noise_multiplier:g} or more",
            "raise noise_multiplier in the job's [privacy], or lower least_noise_multiplier in edge.toml",
        )
