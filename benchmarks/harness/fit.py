"""Fits costs by least squares: coefficients, their standard errors, R², and how a cost grows with a size."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Fit:
    """A linear model.

    Attributes:
        coefficients: one for each column of the design.
        errors: their standard errors; as many.
        r2: share of the values' variance that the model explains.
    """

    coefficients: list[float]
    errors: list[float]
    r2: float


def fit(design: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
    """Fit values as a sum of a design's columns, so that relative deviations are smallest.

    Where a cost was measured at sizes from tens to thousands, absolute deviations would let the largest size decide.

    Args:
        design: (measurements, columns).
        values: (measurements,) above 0; more than there are columns.
    """
    x, y = np.asarray(design, dtype=float), np.asarray(values, dtype=float)
    weighted = x / y[:, None]
    found, _, rank, _ = np.linalg.lstsq(weighted, np.ones_like(y), rcond=None)
    free = len(y) - x.shape[1]
    if rank < x.shape[1] or free < 1:
        raise ValueError("the measurements do not tell the columns apart")
    relative = weighted @ found - 1.0
    covariance = np.linalg.inv(weighted.T @ weighted) * float(relative @ relative) / free
    residual = x @ found - y
    spread = y - y.mean()
    r2 = 1.0 - float(residual @ residual) / float(spread @ spread)
    return Fit(found.tolist(), np.sqrt(np.diag(covariance)).tolist(), r2)


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent with which a cost grows with a size: 1 is linear, 2 is the square."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope
