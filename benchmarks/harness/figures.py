"""Figures of repeated measurements: the spread of values and of ratios, and verdicts against bounds."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Spread = dict[str, float]
"""``median``, ``min`` and ``max`` of repeated measurements."""
Spreads = dict[str, Spread]
"""The spread of each figure, by the figure's name."""


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the smallest and the largest value, rounded to four decimals."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the ratios of two series of the same length, pair by pair."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


def print_verdicts(results: Spreads, bounds: Mapping[str, float]) -> None:
    """Print the spread of each bounded result and whether its median is within its upper bound."""
    for key, bound in bounds.items():
        found = results[key]
        verdict = "within" if found["median"] <= bound else "OVER"
        print(f"{key:32} {found['median']:8.3f}  ({found['min']:.3f} … {found['max']:.3f})  {verdict} {bound}")
