"""Merges a hybrid round's forward-only scalars and backprop deltas, layer by layer; docs/hybrid.md derives the weights.

A group is one transformer layer, or all parameters before or behind the layers. In each group the deltas of the devices
that sent it are averaged by examples, and so are the forward-only devices' movements. The two means estimate the same
descent: the backprop mean is m plus noise of variance V_b, the forward-only mean is α·m plus noise of variance V_z. The
unbiased estimate of m with the least variance is

    (û_b / V_b + α û_z / V_z) / (1 / V_b + α² / V_z)

V_z follows from the scalars (per parameter, the sum of the squared coefficients of all directions), V_b from the
spread of the deltas, and α from the projection of û_z on û_b, in which the precision of û_z weighs each group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.coefficients import apply_terms
from edge_runtime.forward_only.replay import round_terms
from server.storage.records import MergeFigures

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.values import FloatVector
    from server.rounds.delta_files import Movement

DoubleVector = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

_UNKNOWN_SPREAD = 0.5
"""Share of a delta's square that is taken for noise where no group of the round has two deltas to compare; ours."""
_LEAST_SIGNAL = 0.1
"""Smallest share of the square of a mean of deltas that is taken for signal; ours."""
_STANDARD_ERRORS = 2.0
"""Number of its standard errors that α must be above 0 to count as known."""
_SURELY = 5.0
"""Number of standard errors that a movement's squared length must be above that of noise to count as more."""


@dataclass(frozen=True)
class Delta:
    """What one backprop device sent.

    Attributes:
        share: its weight in the mean: its number of rows, or 1.
        layers: the layers that it sent; parameters outside the layers are always sent.
        movement: float32, (parameters,); where it stays in its file, each slice is read when it is asked for.
    """

    share: float
    layers: Collection[int]
    movement: Movement


@dataclass(frozen=True)
class Forward:
    """What the forward-only devices of a round did together.

    Attributes:
        movement: weighted mean of their movements, float32, (parameters,).
        front_size: number of parameters in the front block.
        front_variance: variance of a front parameter in ``movement``.
        back_variance: variance of a back parameter in ``movement``.
    """

    movement: FloatVector
    front_size: int
    front_variance: float
    back_variance: float


def forward_part(log: RoundLog, size: int) -> Forward:
    """Return what the forward-only devices of a round did together, without the log's momentum.

    Args:
        log: the round's log.
        size: number of parameters.

    Raises:
        ProtocolError: the log's scalars do not fit its rule.
    """
    terms = round_terms(log)
    movement: FloatVector = np.zeros(size, dtype=np.float32)
    apply_terms(movement, movement, log.front_size, terms)
    # A direction's entries are ±1 and independent, so each term adds the square of its coefficient.
    front, back = (math.fsum(c * c for _, c in block) for block in (terms.front, terms.back))
    return Forward(movement, log.front_size, front, back)


def groups_of(parameters: Sequence[Parameter]) -> dict[int, slice]:
    """Return the slice of each group, by layer; the layout is ordered by depth."""
    groups: dict[int, slice] = {}
    for p in parameters:
        start = groups[p.layer].start if p.layer in groups else p.offset
        groups[p.layer] = slice(start, p.stop)
    return groups


def merge(
    parameters: Sequence[Parameter],
    n_layers: int,
    deltas: Mapping[str, Delta],
    forward: Forward | None,
    *,
    by_noise: bool,
    forward_share: float = 0.0,
) -> tuple[DoubleVector, MergeFigures]:
    """Return the movement of a round: float64, (parameters,).

    Args:
        parameters: the layout.
        n_layers: L.
        deltas: what the backprop devices sent, by device; at least one.
        forward: what the forward-only devices did; None: there were none.
        by_noise: whether the noise of each kind gives the weights; else the numbers of rows do.
        forward_share: sum of the weights of all forward-only devices, for weights by rows.
    """
    groups = groups_of(parameters)
    means = {group: _mean(deltas, group, where, n_layers) for group, where in groups.items()}
    relative = _relative_spread([mean for mean in means.values() if mean is not None])
    noise = {group: mean.noise(relative) for group, mean in means.items() if mean is not None}
    alpha = None if forward is None else _alpha(forward, groups, means, noise)
    movement: DoubleVector = np.zeros(parameters[-1].stop, dtype=np.float64)
    shares = []
    for group, where in groups.items():
        mean = means[group]
        zeroth = None if forward is None else forward.movement[where].astype(np.float64)
        if mean is None:
            movement[where] = 0.0 if zeroth is None else zeroth
            continue
        movement[where] = mean.movement
        if zeroth is None or forward is None:
            continue
        if not by_noise:
            weight = mean.share / (mean.share + forward_share)
            movement[where] = weight * mean.movement + (1 - weight) * zeroth
        else:
            weight, factor = _weights(noise[group], _forward_noise(forward, where), alpha)
            if alpha is None and _moves_by_itself(zeroth, _forward_noise(forward, where)):
                # The movement has a signal that the deltas lack, e.g. where the two kinds have different data.
                weight, factor = mean.share / (mean.share + forward_share), forward_share / (mean.share + forward_share)
            movement[where] = weight * mean.movement + factor * zeroth
        shares.append(weight)
    return movement, MergeFigures(alpha, shares)


@dataclass(frozen=True)
class _Mean:
    """The mean of a group's deltas.

    Attributes:
        movement: the mean, float64, (parameters of the group,).
        share: sum of the devices' shares.
        square: squared length of the mean.
        spread: variance of one delta, summed over the group; None: there is only one delta.
        share_squares: sum of the squared weights; times ``spread`` it is the variance of the mean.
    """

    movement: DoubleVector
    share: float
    square: float
    spread: float | None
    share_squares: float

    def noise(self, relative_spread: float) -> float:
        """Return V_b, summed over the group."""
        spread = self.square * relative_spread if self.spread is None else self.spread
        return max(spread, 1e-30) * self.share_squares


def _mean(deltas: Mapping[str, Delta], group: int, where: slice, n_layers: int) -> _Mean | None:
    outside = not 0 <= group < n_layers
    senders = [deltas[name] for name in sorted(deltas) if outside or group in deltas[name].layers]
    if not senders:
        return None
    total = math.fsum(sender.share for sender in senders)
    weights = [sender.share / total for sender in senders]
    mean: DoubleVector = np.zeros(where.stop - where.start, dtype=np.float64)
    for weight, sender in zip(weights, senders, strict=True):
        mean += weight * sender.movement[where]
    squares = math.fsum(weight * weight for weight in weights)
    spread = None
    if len(senders) > 1:
        apart = (float(np.square(sender.movement[where] - mean).sum()) for sender in senders)
        spread = math.fsum(w * a for w, a in zip(weights, apart, strict=True)) / (1 - squares)
    return _Mean(mean, total, float(np.square(mean).sum()), spread, squares)


def _relative_spread(means: Sequence[_Mean]) -> float:
    """Return the variance of one delta over the square of its mean, for groups that only one device sent."""
    known = [(mean.spread, mean.square) for mean in means if mean.spread is not None and mean.square > 0]
    if not known:
        return _UNKNOWN_SPREAD
    return math.fsum(spread for spread, _ in known) / math.fsum(square for _, square in known)


def _forward_noise(forward: Forward, where: slice) -> float:
    """Return V_z, summed over the group."""
    front = max(0, min(where.stop, forward.front_size) - where.start)
    back = where.stop - where.start - front
    return float(front * forward.front_variance + back * forward.back_variance)


def _alpha(
    forward: Forward, groups: Mapping[int, slice], means: Mapping[int, _Mean | None], noise: Mapping[int, float]
) -> float | None:
    """Return α over all groups that both kinds moved; None where the forward-only movement is too noisy to show it.

    By generalised least squares: the precision of its parameters weighs a group, so that a group with few directions
    for its size (a layer) does not outweigh one with many (the head).
    """
    along, variance, signal = 0.0, 0.0, 0.0
    for group, where in groups.items():
        mean, forward_noise = means[group], _forward_noise(forward, where)
        if mean is None or forward_noise <= 0:
            continue
        precision = (where.stop - where.start) / forward_noise
        along += precision * float(forward.movement[where].astype(np.float64) @ mean.movement)
        variance += precision * mean.square
        signal += precision * max(mean.square - noise[group], _LEAST_SIGNAL * mean.square)
    if signal <= 0 or along <= _STANDARD_ERRORS * math.sqrt(variance):
        return None
    return along / signal


def _moves_by_itself(movement: DoubleVector, noise: float) -> bool:
    """Whether a group's forward-only movement is longer than noise alone would make it.

    The relative standard error of the squared length of a sum of random signs is at most √(2 / size).
    """
    return float(np.square(movement).sum()) > noise * (1 + _SURELY * math.sqrt(2 / movement.size))


def _weights(backprop_noise: float, forward_noise: float, alpha: float | None) -> tuple[float, float]:
    """Return the factors of û_b and û_z."""
    if alpha is None or forward_noise <= 0:
        return 1.0, 0.0
    information = alpha * alpha / forward_noise
    total = 1 / backprop_noise + information
    return 1 / backprop_noise / total, alpha / forward_noise / total


def merged_adapter(
    theta: FloatVector, previous: FloatVector | None, momentum: float, movement: DoubleVector
) -> FloatVector:
    """Return the adapter after a round: float32, (parameters,).

    Args:
        theta: the adapter that the round started from.
        previous: the adapter before that one; None: there is none.
        momentum: share of the last round's movement that is added again.
        movement: the round's movement, as merge returns it.

    Raises:
        TrainingError: the result is not finite.
    """
    result = theta.astype(np.float64) + movement
    if previous is not None and momentum > 0:
        result += momentum * (theta.astype(np.float64) - previous)
    with np.errstate(over="ignore"):  # checked on the next lines
        adapter: FloatVector = result.astype(np.float32)
    if not np.isfinite(adapter).all():
        raise TrainingError("the round gives an adapter that is not finite", "lower learning_rate in the job's [stld]")
    return adapter
