"""Gains of the arms: a discounted linear model of a round's gain, over the whole fleet.

A round's movement is the weighted mean of its devices' movements, so the model takes its gain to be Σ share × gain of
the arm (ours). The left side is the fall of the held-out loss between two evaluations, however many rounds lie between
them. All gains shrink alike while a model learns, so they are measured in units of a running scale: what was learned
of their ratios stays valid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Vector = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

# The constants are ours. They were set by hand; benchmarks/arm_choice shows what they give together.
_PRIOR_SD = 0.5
"""Standard deviation of an arm's prior gain, as a share of its mean: a cost is a rough guide to a gain."""
_NOISE = 0.3
"""Standard deviation of a round's observed gain before any was seen, in units of the scale."""
_SCALE_TRUST = 0.3
"""Exponent by which one observation moves the scale towards observed over predicted gain."""
_LEAST = 0.02
"""Smallest gain of an arm, in units of the scale: above 0, so that an unlucky arm can still be drawn."""
_LARGEST = 10.0
"""An observed gain counts as at most this many times the predicted one: one odd evaluation cannot take over."""


class Gains(msgspec.Struct, frozen=True):
    """The model's state: a discounted least-squares problem.

    Attributes:
        arms: names of the arms, in the order of the columns.
        prior: prior means, in units of the scale.
        precision: Σ discount^age × x xᵀ / noise, as rows, (arms, arms).
        moment: Σ discount^age × x y / noise, (arms,).
        scale: fall of the held-out loss in a round whose arms all have gain 1; None: nothing was observed yet.
        noise: variance of one round's observed gain, in units of scale².
        seen: number of observations.
    """

    arms: list[str] = []
    prior: list[float] = []
    precision: list[list[float]] = []
    moment: list[float] = []
    scale: float | None = None
    noise: float = _NOISE**2
    seen: int = 0


def with_arms(gains: Gains, priors: Mapping[str, float]) -> Gains:
    """Return the model over exactly these arms: a new arm starts at its prior, a vanished one is dropped."""
    names = list(priors)
    if names == gains.arms:
        return gains
    at = {name: index for index, name in enumerate(gains.arms)}

    def cell(row: str, column: str) -> float:
        return gains.precision[at[row]][at[column]] if row in at and column in at else 0.0

    return msgspec.structs.replace(
        gains,
        arms=names,
        prior=[priors[name] for name in names],
        precision=[[cell(row, column) for column in names] for row in names],
        moment=[gains.moment[at[name]] if name in at else 0.0 for name in names],
    )


def posterior(gains: Gains) -> tuple[Vector, Any]:
    """Return the gains' mean, float64, (arms,), and covariance, (arms, arms), in units of the scale."""
    prior = np.array(gains.prior)
    weight = np.diag(1 / (_PRIOR_SD * prior) ** 2)
    precision = np.array(gains.precision).reshape(prior.size, prior.size) + weight
    covariance = np.linalg.inv(precision)
    mean: Vector = covariance @ (np.array(gains.moment) + weight @ prior)
    return np.maximum(mean, _LEAST), (covariance + covariance.T) / 2


def draw(gains: Gains, rng: np.random.Generator) -> Vector:
    """Draw gains from the posterior: float64, (arms,), none below _LEAST."""
    mean, covariance = posterior(gains)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    drawn: Vector = mean + root @ rng.standard_normal(mean.size)
    return np.maximum(drawn, _LEAST)


def observe_gain(gains: Gains, use: Mapping[str, float], gain: float, discount: float) -> Gains:
    """Return the model after an evaluation.

    Args:
        gains: the model before it.
        use: by arm name, the sum of the shares of the devices that ran it, over all rounds since the last evaluation.
        gain: fall of the held-out loss since then, in nats; may be negative.
        discount: weight of earlier observations after one more round, 0 to 1.
    """
    x: Vector = np.array([use.get(name, 0.0) for name in gains.arms])
    rounds = float(x.sum())
    if rounds <= 0 or not math.isfinite(gain):
        return gains
    mean, _ = posterior(gains)
    predicted = float(x @ mean)
    scale = max(gain, 1e-12) / predicted if gains.scale is None else gains.scale
    y = min(max(gain / scale, -_LARGEST * predicted), _LARGEST * predicted)
    fade = discount**rounds
    error = (y - predicted) ** 2 / rounds
    noise = min(max(0.9 * gains.noise + 0.1 * error, 0.05**2), 4.0)
    weight = 1 / (noise * rounds)
    precision = fade * np.array(gains.precision).reshape(x.size, x.size) + weight * np.outer(x, x)
    moment = fade * np.array(gains.moment) + weight * y * x
    rows: list[list[float]] = precision.tolist()
    # The scale follows the size of all gains together; the model keeps the arms' ratios.
    trust = _SCALE_TRUST * (1 - math.exp(-rounds))
    drift = min(max(y / predicted, 0.25), 4.0)
    return Gains(
        gains.arms,
        gains.prior,
        rows,
        moment.tolist(),
        scale * drift**trust,
        noise,
        gains.seen + 1,
    )


def mean_gains(gains: Gains) -> Sequence[tuple[float, float]]:
    """Return the mean and standard deviation of each arm's gain, in units of the scale."""
    mean, covariance = posterior(gains)
    return list(zip(mean.tolist(), np.sqrt(np.maximum(np.diag(covariance), 0.0)).tolist(), strict=True))
