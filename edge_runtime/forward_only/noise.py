"""Local differential privacy: clip scalars and add Gaussian noise on the device, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edge_runtime.protocol.privacy import Privacy
    from edge_runtime.values import FloatVector


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
