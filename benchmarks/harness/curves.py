"""Curves of held-out loss and accuracy against what was spent, and where they reach a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Point = list[float]
"""What was spent (rounds, seconds, forward equivalents), held-out loss, held-out accuracy."""
Curve = list[Point]

LOSS, ACCURACY = 1, 2
"""Columns of a point."""


def point(spent: float, loss: float, accuracy: float) -> Point:
    """Return a point, rounded for the results file."""
    return [round(spent, 1), round(loss, 5), round(accuracy, 4)]


def first_at(curve: Sequence[Sequence[float]], column: int, wanted: float, *, is_rising: bool = False) -> float | None:
    """Return what was spent when a curve first reached a value, linear between its points.

    Args:
        curve: points; what was spent comes first in each.
        column: the column of the value.
        wanted: the value.
        is_rising: whether the value is reached from below; otherwise from above.

    Returns:
        None where the curve never reaches the value.
    """
    before: Sequence[float] | None = None
    for after in curve:
        if after[column] == wanted or (after[column] > wanted) == is_rising:
            if before is None or before[column] == after[column]:
                return after[0]
            share = (before[column] - wanted) / (before[column] - after[column])
            return before[0] + (after[0] - before[0]) * share
        before = after
    return None
