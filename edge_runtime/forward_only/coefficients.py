"""Turns a step's scalars into coefficients, the factors of the directions that are added to the parameters.

A coefficient is computed in float64 with plain additions in a fixed order, then rounded to float32; an update is one
float32 multiply and one add per parameter (perturbation/perturb.py). So the same scalars give the same bits on every
machine.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.perturbation.perturb import BACK, FRONT, perturb_many_into

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edge_runtime.forward_only.directions import StepSeeds
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

_MEAN_SQUARE_DECAY = 0.9


@dataclass(frozen=True)
class Coefficients:
    """One step's update: the sum of ``front[i] · z_i`` and ``back[k] · z_k``, in the order of StepSeeds."""

    front: tuple[float, ...]
    back: tuple[float, ...]


@dataclass(frozen=True)
class Terms:
    """A sum of directions for each block: (seed, coefficient), added in this order."""

    front: list[tuple[int, float]] = field(default_factory=list)
    back: list[tuple[int, float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.front) + len(self.back)

    def add(self, seeds: StepSeeds, coefficients: Coefficients) -> None:
        """Append a step's update."""
        self.front.extend(zip(seeds.front, coefficients.front, strict=True))
        self.back.extend(zip(seeds.back, coefficients.back, strict=True))


def step_coefficients(
    scalars: Sequence[float], rule: StepRule, mean_square: float | None
) -> tuple[Coefficients, float | None]:
    """Turn a step's scalars into the coefficients of its update.

    Args:
        scalars: the step's projected gradients, as they were rounded to float32.
        rule: the step's rule.
        mean_square: running mean square of the scalars so far; None before the first step.

    Returns:
        The coefficients, which include the learning rate, the sign of descent and the normalisation; and the new
        running mean square, None when the rule does not keep one.
    """
    counted, n = _kept(scalars, rule)
    front, back = _nested_estimate(counted, n, rule) if rule.is_nested else _clean_estimate(counted, rule)
    size, mean_square = _size_of(scalars, rule, mean_square)
    factor = -rule.learning_rate / size if size > 0 else 0.0
    return Coefficients(tuple(factor * c for c in front), tuple(factor * c for c in back)), mean_square


def _plain_sum(values: Iterable[float]) -> float:
    """Add up in order, rounding after each addition; since Python 3.12 the built-in sum compensates for rounding."""
    total = 0.0
    for value in values:
        total += value
    return total


def _size_of(scalars: Sequence[float], rule: StepRule, mean_square: float | None) -> tuple[float, float | None]:
    """Return the divisor of the scalars, and the new running mean square."""
    if rule.normalize == "none":
        return 1.0, None
    if rule.normalize == "std":
        mean = _plain_sum(scalars) / len(scalars)
        # Not ** 2: the C library's pow may round differently.
        squares = _plain_sum((g - mean) * (g - mean) for g in scalars)
        return math.sqrt(squares / (len(scalars) - 1)), None
    now = _plain_sum(g * g for g in scalars) / len(scalars)
    previous = now if mean_square is None else mean_square
    mean_square = _MEAN_SQUARE_DECAY * previous + (1 - _MEAN_SQUARE_DECAY) * now
    return math.sqrt(mean_square), mean_square


def _without_the_others(group: Sequence[float], *, leave_one_out: bool) -> list[float]:
    if not leave_one_out or len(group) < 2:
        return list(group)
    total = _plain_sum(group)
    return [g - (total - g) / (len(group) - 1) for g in group]


def _kept(scalars: Sequence[float], rule: StepRule) -> tuple[Sequence[float], int]:
    """Return the scalars, with 0 for those that do not count, and the number of those that do.

    With keep_directions these are the ones with the largest absolute values; of equal ones, the first.
    """
    if rule.keep_directions is msgspec.UNSET:
        return scalars, len(scalars)
    best = heapq.nsmallest(rule.keep_directions, range(len(scalars)), key=lambda index: (-abs(scalars[index]), index))
    return [g if index in best else 0.0 for index, g in enumerate(scalars)], len(best)


def _nested_estimate(scalars: Sequence[float], n: int, rule: StepRule) -> tuple[list[float], list[float]]:
    """Return the two blocks' estimates; ``n`` is the number of scalars that count."""
    p1, p2 = rule.front_perturbations, rule.back_perturbations
    groups = [scalars[i * p2 : (i + 1) * p2] for i in range(p1)]
    front = [_plain_sum(group) / n for group in groups]
    back = [g / n for group in groups for g in _without_the_others(group, leave_one_out=rule.leave_one_out)]
    return front, back


def _clean_estimate(scalars: Sequence[float], rule: StepRule) -> tuple[list[float], list[float]]:
    p1, p2 = rule.front_directions, rule.back_perturbations
    # Nothing is shared here: leave-one-out would only add noise, and rule checks refuse it.
    return [g / p1 for g in scalars[:p1]], [g / p2 for g in scalars[p1:]]


def add_terms(
    out: FloatVector, clean: FloatVector, terms: Sequence[tuple[int, float]], block: int, offset: int = 0
) -> None:
    """Write ``clean`` plus a block's terms to ``out``, one after the other; arrays and offset as perturb_many_into."""
    perturb_many_into(out, clean, [seed for seed, _ in terms], block, [scale for _, scale in terms], offset)


def apply_terms(out: FloatVector, theta: FloatVector, front_size: int, terms: Terms) -> None:
    """Write ``theta`` plus all terms to ``out``, one after the other: float32, (parameters,); may be the same array."""
    add_terms(out[:front_size], theta[:front_size], terms.front, FRONT)
    add_terms(out[front_size:], theta[front_size:], terms.back, BACK)


def apply_step(theta: FloatVector, front_size: int, seeds: StepSeeds, coefficients: Coefficients) -> None:
    """Add one step's update to ``theta``, in place: first the front's directions, then the back's.

    Args:
        theta: float32, (parameters,), changed.
        front_size: length of the front block, the first elements of theta.
        seeds: the step's directions.
        coefficients: the result of step_coefficients for its scalars.
    """
    terms = Terms()
    terms.add(seeds, coefficients)
    apply_terms(theta, theta, front_size, terms)
