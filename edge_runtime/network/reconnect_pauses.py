"""Pauses between attempts to reach a broker: drawn, so that a fleet that lost it does not come back at one instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

LEAST_PAUSE_S = 1.0
WIDTH_AFTER_LOSS_S = 6.0
"""Width of the window in which a device comes back after its connection was lost, in seconds."""
_WIDTH_AT_START_S = 1.0
WIDEST_S = 60.0
LONGEST_PAUSE_S = LEAST_PAUSE_S + WIDEST_S
"""After how many seconds at most a device tries again, where the broker was away for long."""


class ReconnectPauses:
    """Draws how long to wait before each attempt to connect.

    Each pause is uniform over a window that begins at a least pause. After a loss the window is 6 s wide, before the
    first login 1 s; each attempt that fails doubles it, up to 60 s.

    Args:
        rng: draws the pauses; each device needs one of its own.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._least_s, self._width_s = LEAST_PAUSE_S, _WIDTH_AT_START_S

    def lost(self, least_s: float) -> None:
        """Enter that a connection broke: the pauses begin anew, and none is shorter than ``least_s`` seconds."""
        self._least_s, self._width_s = least_s, WIDTH_AFTER_LOSS_S

    def draw(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause_s = self._least_s + self._width_s * self._rng.random()
        self._width_s = min(WIDEST_S, 2 * self._width_s)
        return pause_s
