"""The moment of a job: one vector beside the adapter that a round needs from the rounds before it, and its two uses.

With ``curvature`` it is the running mean of squared updates, and gives the preconditioner of directions and updates;
with ``sign_momentum`` it is the running mean of the updates, and its signs are how a round moves. docs/algorithm.md
derives both. A job's first round begins without a moment, which counts as zeros.

Only adding, multiplying, dividing and square roots of float32, each rounded once, in a fixed order: every machine gets
the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.coefficients import add_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.protocol.step_rule import Curvature, StepRule
    from edge_runtime.values import FloatVector

    BlockTerms = Sequence[tuple[int, float]]


def shape_of(rule: StepRule, moment: FloatVector | None, rounds: int) -> FloatVector | None:
    """Return the factors by which directions and updates are multiplied: float32, (parameters,).

    Args:
        rule: the round's rule.
        moment: the moment before the round, or a part of it; None: no round has left one.
        rounds: number of rounds that have gone into the moment.

    Returns:
        ``sqrt((1 + floor) / (mean square / (1 − decay^rounds) + floor))``; None where all factors are 1.

    Raises:
        TrainingError: the moment is needed and missing.
    """
    if rule.curvature is msgspec.UNSET or rounds == 0:
        return None
    if moment is None:
        raise TrainingError(
            f"round {rounds} of a job with curvature needs the moment of the rounds before it, and the plan names none",
            "run the same version of Covey on the device and on the server",
        )
    floor = rule.curvature.floor
    shape: FloatVector = np.multiply(moment, np.float32(1 / _weight_of(rule.curvature.decay, rounds)))
    np.add(shape, np.float32(floor), out=shape)
    np.divide(np.float32(1 + floor), shape, out=shape)
    np.sqrt(shape, out=shape)
    return shape


def _weight_of(decay: float, rounds: int) -> float:
    """Return 1 − decay^rounds, the sum of the weights of the rounds in a running mean that began with 0."""
    left = 1.0
    for _ in range(rounds):  # not **, which calls the C library
        left *= decay
        if left < 1e-20:  # then 1 − left is 1
            break
    return 1 - left


def add_shaped(
    out: FloatVector,
    clean: FloatVector,
    terms: BlockTerms,
    block: int,
    offset: int = 0,
    shape: FloatVector | None = None,
) -> None:
    """Write ``clean + shape · (the sum of a part of a block's terms)`` to ``out``, which is another array.

    Args:
        out: float32, (n,), written.
        clean: float32, (n,).
        terms: the terms.
        block: FRONT or BACK.
        offset: where the part starts, in parameters from the block's first.
        shape: float32, (n,); None: the terms are added to ``clean`` one after the other.
    """
    if shape is None:
        add_terms(out, clean, terms, block, offset)
        return
    out.fill(0)
    add_terms(out, out, terms, block, offset)
    np.multiply(out, shape, out=out)
    np.add(clean, out, out=out)


def move_part(
    part: FloatVector, moment: FloatVector, rule: StepRule, rounds: int, terms: BlockTerms, block: int, offset: int
) -> None:
    """Add a round's update to a part of one block, and enter it in the same part of the moment. Both are written.

    With ``curvature`` the part becomes, bit for bit, what add_shaped makes of it.

    Args:
        part: float32, (n,): the adapter before the round.
        moment: float32, (n,): the moment before the round; zeros in a job's first.
        rule: the round's rule, which keeps a moment.
        rounds: number of rounds that have gone into the moment.
        terms: all of the block's terms.
        block: FRONT or BACK.
        offset: where the part starts, in parameters from the block's first.
    """
    update: FloatVector = np.zeros_like(part)
    add_terms(update, update, terms, block, offset)
    length = _length_of(terms)
    if rule.curvature is not msgspec.UNSET:
        shape = shape_of(rule, moment, rounds)
        np.add(part, update if shape is None else np.multiply(update, shape), out=part)
        _enter_squares(moment, update, length, rule.curvature)
        return
    assert rule.sign_momentum is not msgspec.UNSET  # noqa: S101 the rule keeps a moment
    _enter(moment, update, rule.sign_momentum)
    np.add(part, np.multiply(np.sign(moment), np.float32(length)), out=part)


def _length_of(terms: BlockTerms) -> float:
    """Return the root mean square of a sum of directions over its parameters, were no two of them alike."""
    total = 0.0
    for _, coefficient in terms:
        rounded = float(np.float32(coefficient))
        total += rounded * rounded
    return math.sqrt(total)


def _enter_squares(moment: FloatVector, update: FloatVector, length: float, curvature: Curvature) -> None:
    """Enter the squares of an update, in units of the mean that noise alone would give them."""
    if length > 0 and math.isfinite(1 / length):
        np.multiply(update, np.float32(1 / length), out=update)
        np.multiply(update, update, out=update)
    else:
        update.fill(1)  # nothing moved, and nothing was learned: what noise alone gives
    _enter(moment, update, curvature.decay)


def _enter(moment: FloatVector, values: FloatVector, decay: float) -> None:
    np.multiply(moment, np.float32(decay), out=moment)
    np.add(moment, np.multiply(values, np.float32(1 - decay)), out=moment)
