"""The record of one arm choice: each arm's estimates, and why one was picked. ``covey job explain`` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from server.bandit.arms import Arm, PricedArm

if TYPE_CHECKING:
    from collections.abc import Sequence


class Candidate(msgspec.Struct, frozen=True):
    """A device of the cohort: its name, its share of the round's average, and its arms."""

    device: str
    share: float
    arms: list[PricedArm]


class Estimate(msgspec.Struct, frozen=True, array_like=True):
    """What was known of one arm when the choice was made. Unknown is None.

    Attributes:
        arm: the arm.
        cost: as in its PricedArm.
        base_s: seconds of a round's local steps before any report; with a frozen front, without kept activations.
        round_s: expected seconds of a round: steps, link, replay, queue.
        source: where ``round_s`` comes from, see step_times.Expected.
        gain: mean of its estimated gain, in units of Gains.scale.
        gain_sd: standard deviation of that estimate.
        score: what the policy compared.
        left_out: why the device could not be given it; None: it could.
        front_share: as in its PricedArm.
    """

    arm: Arm
    cost: float
    base_s: float | None
    round_s: float | None
    source: str
    gain: float | None = None
    gain_sd: float | None = None
    score: float | None = None
    left_out: str | None = None
    front_share: float = 0.0


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """The arm of one device in a round, and why; ``arm`` is None where no arm fits the device."""

    device: str
    arm: Arm | None
    policy: str
    why: str
    estimates: list[Estimate]

    @property
    def estimate(self) -> Estimate | None:
        """The estimate of the chosen arm; None where there is none."""
        return next((entry for entry in self.estimates if entry.arm == self.arm), None)


def expected_s(choices: Sequence[Choice], enough: int) -> float | None:
    """Return the seconds until ``enough`` reports are expected; None: an arm's time is not known."""
    known = [choice.estimate.round_s for choice in choices if choice.estimate is not None]
    times = sorted(seconds for seconds in known if seconds is not None)
    if not times or len(times) < len(known):
        return None
    return times[min(enough, len(times)) - 1]
