"""What was thought of each arm, what was chosen and why: it is kept for ``covey job explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from server.bandit.arms import Arm, Offer

if TYPE_CHECKING:
    from collections.abc import Sequence


class Candidate(msgspec.Struct, frozen=True):
    """A device of the round: its name, its share of the round, and its arms."""

    device: str
    share: float
    offers: list[Offer]


class Estimate(msgspec.Struct, frozen=True, array_like=True):
    """What was thought of an arm when it was chosen or not; ``score`` is what the policy compared."""

    arm: Arm
    cost: float
    base_s: float | None
    round_s: float | None
    source: str
    gain: float | None = None
    gain_sd: float | None = None
    score: float | None = None
    left_out: str | None = None


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """A device's arm in a round, and why. ``arm`` is None where none fits."""

    device: str
    arm: Arm | None
    policy: str
    why: str
    estimates: list[Estimate]

    @property
    def estimate(self) -> Estimate | None:
        """The estimate of the chosen arm."""
        return next((entry for entry in self.estimates if entry.arm == self.arm), None)


def expected_s(choices: Sequence[Choice], enough: int) -> float | None:
    """Return how long the round is expected to take: until the slowest of the ``enough`` quickest reports.

    None: not known.
    """
    known = [choice.estimate.round_s for choice in choices if choice.estimate is not None]
    times = sorted(seconds for seconds in known if seconds is not None)
    if not times or len(times) < len(known):
        return None
    return times[min(enough, len(times)) - 1]
