"""Accounts for the privacy that a job has spent: Rényi accounting of Gaussian mechanisms, by dp-accounting."""

from __future__ import annotations

import math

from edge_runtime.errors import ConfigError


def device_epsilon(releases: int, noise_multiplier: float, delta: float) -> float:
    """Return ε of all rows of a device together, after it has sent a number of scalars; math.inf without noise.

    Two data sets are neighbours if one has a device's rows and the other any rows in their place. A scalar is in
    [−clip, clip], so it changes by at most 2·clip: the mechanism's own noise multiplier is half of
    ``noise_multiplier``. The bound assumes nothing about how cohorts are chosen, and trusts nobody but the device.

    Args:
        releases: number of scalars that the device has sent.
        noise_multiplier: standard deviation of the noise, divided by ``clip``.
        delta: δ.

    Raises:
        ConfigError: the accounting library is not installed.
    """
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    try:
        import dp_accounting  # noqa: PLC0415 imports scipy and others: only for private jobs
        from dp_accounting import rdp  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("a private job needs the package dp-accounting", "pip install 'covey[privacy]'") from error
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    # The accountant's Gaussian event is for sensitivity 1; REPLACE_ONE does not double the sensitivity by itself.
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier / 2), releases)
    return float(accountant.get_epsilon(delta))
