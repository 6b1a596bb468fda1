"""Pauses between logins of a connection that keeps breaking soon after each: two programs of one name do not spin."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

SOON_S = 30.0
"""A connection that breaks within this time after its login counts as broken soon."""
SHORT_PAUSE_S = 1.0
PATIENCE = 3
"""Quick losses in a row after which the pauses grow."""
_STEP_S = 5.0
LONGEST_PAUSE_S = 60.0
_JITTER = 0.5


class QuickLosses:
    """Counts connections in a row that broke soon after their login, and says how long to wait after each.

    The pauses are 1 s, and from the third loss on 5, 10, … 60 s, each lengthened by up to half at random: two programs
    that throw each other out must not keep step. While the pauses are long, "soon" is too: what a twin leaves this
    program lasts as long as the twin's own pause.

    Args:
        rng: draws the lengthening.

    Attributes:
        count: quick losses in a row, the last one included; 1 after a connection that had lasted.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.count = 0

    def lost(self, up_s: float) -> float:
        """Enter that a connection broke ``up_s`` seconds after its login; return the seconds to wait."""
        soon_s = SOON_S if self.count < PATIENCE else SOON_S + LONGEST_PAUSE_S * (1 + _JITTER)
        self.count = self.count + 1 if up_s < soon_s else 1
        if self.count < PATIENCE:
            return SHORT_PAUSE_S
        steps = self.count - PATIENCE + 1
        return min(LONGEST_PAUSE_S, _STEP_S * steps) * (1 + _JITTER * self._rng.random())
