"""Which devices of a job run against the others, by the cosines of their paths over many rounds; see docs/robust.md.

A single cosine says little: paths are noisy, and an honest device with data unlike the others' may move against them
for a while. Near an optimum the gradients of honest devices cancel, so that *every* device runs against the sum of the
others. So a device is named only where the others agree with each other, over many rounds, and it runs against them as
clearly as they agree and far outside what their data make of them.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from server.job.robust import FEWEST_TO_OUTVOTE

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_ROUNDS = 8
"""Rounds in which a device must have been compared."""
STANDARD_ERRORS = 4.0
"""Number of its standard errors that a device's mean cosine must be below 0, and the others' median above."""
LEAST_SHARE = 0.5
"""Smallest size of a negative mean cosine, as a share of the median of the others."""
SPREADS = 2.5
"""Number of standard deviations of the others' mean cosines that a device must be below their median.

The deviation is the plain one, which a second device far out widens: where data make several devices differ that much,
nobody is named.
"""


def _by_device(rounds: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for cosines in rounds:
        for name, cosine in cosines.items():
            found.setdefault(name, []).append(cosine)
    return dict(sorted(found.items()))


def mean_cosines(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean cosine of each device that was ever compared, by name.

    Args:
        rounds: for each round, the cosine of each device's path with the sum of the others'.
    """
    return {name: statistics.fmean(cosines) for name, cosines in _by_device(rounds).items()}


def against_the_others(rounds: Sequence[dict[str, float]]) -> dict[str, str]:
    """Return the evidence against each device that runs against the others, by name.

    A device is named if it was compared in at least LEAST_ROUNDS rounds, its mean cosine is negative by STANDARD_ERRORS
    standard errors, the median over the other devices' mean cosines is positive by as many of its own, and the mean is
    at least LEAST_SHARE of that median in size and SPREADS standard deviations of the others' mean cosines below it.

    Args:
        rounds: for each round, the cosine of each device's path with the sum of the others'.
    """
    compared = {name: values for name, values in _by_device(rounds).items() if len(values) >= LEAST_ROUNDS}
    if len(compared) < FEWEST_TO_OUTVOTE:
        return {}
    means = {name: statistics.fmean(values) for name, values in compared.items()}
    errors = {name: statistics.stdev(values) / math.sqrt(len(values)) for name, values in compared.items()}
    named = {}
    for name, mean in means.items():
        others = sorted((other for other in means if other != name), key=lambda other: means[other])
        middle = others[(len(others) - 1) // 2]  # the lower median, a device with an error of its own
        if (
            means[middle] > STANDARD_ERRORS * errors[middle]
            and mean < -STANDARD_ERRORS * errors[name]
            and mean <= -LEAST_SHARE * means[middle]
            and mean < means[middle] - SPREADS * statistics.pstdev(means[other] for other in others)
        ):
            named[name] = (
                f"mean cosine {mean:.3f} ± {errors[name]:.3f} with the others over {len(compared[name])} rounds, "
                f"their median is {means[middle]:.3f}; it attacks, its labels are wrong, or its data are unlike theirs"
            )
    return named
