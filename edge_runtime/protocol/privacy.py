"""Differential privacy on the device: scalars are clipped and noised before they are used or sent.

Every scalar lies in [−clip, clip] before the noise, whatever the device's rows are, so one scalar reveals at most
2·clip of difference: the Gaussian mechanism at device level, without trust in the server. The device's own local model
uses the noised scalars too, so nothing else of its rows leaves it. The losses of a private round are not reported.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.errors import ConfigError


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scalars are protected.

    Attributes:
        clip: largest absolute value of a scalar.
        noise_multiplier: standard deviation of the noise, as a multiple of ``clip``; 0 only clips.
    """

    clip: Annotated[float, msgspec.Meta(gt=0, le=1e5)]
    noise_multiplier: Annotated[float, msgspec.Meta(ge=0, le=1e3)]


def check_privacy(offered: Privacy | None, least_noise_multiplier: float | None) -> None:
    """Check that a plan's noise is at least what the device's owner asks for.

    Raises:
        ConfigError: it is less; the device then refuses the plan.
    """
    if least_noise_multiplier is None:
        return
    noise = 0.0 if offered is None else offered.noise_multiplier
    if noise < least_noise_multiplier:
        raise ConfigError(
            f"the job's noise_multiplier is {noise:g}, this device asks for {least_noise_multiplier:g} or more",
            "raise noise_multiplier in the job's [privacy], or lower least_noise_multiplier in edge.toml",
        )
