"""Pauses of devices that refused a plan or did not answer it: growing, so that nobody is asked in vain each round."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 1800.0


@dataclass(frozen=True)
class Rest:
    """Why a device is offered nothing for a while.

    Attributes:
        reason: what it said when it refused, or that it said nothing.
        times: how often in a row it has refused or kept silent.
        until: when it is offered work again, in seconds of the server's clock.
    """

    reason: str
    times: int
    until: float


def next_rest(last: Rest | None, reason: str, now: float) -> Rest:
    """Return the rest after one more refusal or silence: each is twice as long as the one before.

    Args:
        last: the rest before; None: the last offer was taken.
        reason: why the device rests.
        now: seconds of the server's clock.
    """
    times = 1 if last is None else last.times + 1
    pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (times - 1))
    return Rest(reason, times, now + pause_s)
