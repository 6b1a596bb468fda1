"""What arms gain: a linear model of a round's gain over the whole fleet, with discounting.

A round's movement is the weighted mean of its devices' movements, so its gain is taken to be Σ share × gain of the arm
(ours). Held-out evaluations give the left side, however many rounds lie between them. Gains shrink while a model
learns, all arms alike: they are measured in units of a running scale, so that what was learned of the ratios stays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Vector = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

_PRIOR_SD = 0.5
_NOISE = 0.3
_SCALE_TRUST = 0.3
_LEAST = 0.02
_LARGEST = 10.0


class Gains(msgspec.Struct, frozen=True):
    """The model's state: a discounted least-squares problem.

    Attributes:
        arms: names, in the order of the columns.
        prior: prior means, in units of the scale.
        precision: Σ discount^age × x xᵀ / noise², rows.
        moment: Σ discount^age × x y / noise².
        scale: gain of a round in which every arm is at 1; None: nothing was seen.
        noise: variance of an observation in units of the scale².
        seen: observations so far.
    """

    arms: list[str] = []
    prior: list[float] = []
    precision: list[list[float]] = []
    moment: list[float] = []
    scale: float | None = None
    noise: float = _NOISE**2
    seen: int = 0


def with_arms(gains: Gains, priors: Mapping[str, float]) -> Gains:
    """Return the model over exactly these arms: new ones have their prior, vanished ones are forgotten."""
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
    """Return mean, float64, (arms,), and covariance, (arms, arms), in units of the scale."""
    prior = np.array(gains.prior)
    weight = np.diag(1 / (_PRIOR_SD * prior) ** 2)
    precision = np.array(gains.precision).reshape(prior.size, prior.size) + weight
    covariance = np.linalg.inv(precision)
    mean: Vector = covariance @ (np.array(gains.moment) + weight @ prior)
    return np.maximum(mean, _LEAST), (covariance + covariance.T) / 2


def draw(gains: Gains, rng: np.random.Generator) -> Vector:
    """Draw gains from the posterior: float64, (arms,), none of them below a small positive gain."""
    mean, covariance = posterior(gains)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    drawn: Vector = mean + root @ rng.standard_normal(mean.size)
    return np.maximum(drawn, _LEAST)


def observe_gain(gains: Gains, use: Mapping[str, float], gain: float, discount: float) -> Gains:
    """Return the model after an evaluation.

    Args:
        gains: the model before.
        use: by arm, the sum of the shares that used it since the last evaluation, over all its rounds.
        gain: how far the held-out loss fell meanwhile; may be negative.
        discount: what counts of the past, for each round.
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
    # The scale follows the level of all gains; the arms' ratios stay with the model.
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
    """Return mean and standard deviation of each arm."""
    mean, covariance = posterior(gains)
    return list(zip(mean.tolist(), np.sqrt(np.maximum(np.diag(covariance), 0.0)).tolist(), strict=True))
