"""Expected time of an arm on a device: the device's profile, corrected by the times that it reports.

A device has one slowdown (reported over predicted time) for all its arms: heat and load slow them alike. The first
report sets it, whatever the profile claimed; each later one moves it half of the way, so that a board that throttles
is recognised within two or three rounds. A slowdown that no report has confirmed fades with time, so that a device
that was passed over because it was slow is tried again.
"""

from __future__ import annotations

import logging
import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from server.bandit.arms import price_left

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from server.bandit.arms import PricedArm

_LOG = logging.getLogger(__name__)
# The five constants are ours. They were set by hand; benchmarks/arm_choice shows what they give together.
_TRUST = 0.5
"""Share of an error by which a report moves a device's slowdown and overhead: three reports move them by 7/8."""
_ARM_TRUST = 0.3
"""Share of the error left after that by which a report moves its arm's own correction: one odd round hardly counts."""
_MOST_RATIO = 1e4
"""Bound of reported over predicted time, and of its inverse: a broken clock or profile cannot lead further off."""
_SUSPECT = 20.0
"""Where the first report takes this many times the predicted time, or less than 1/20 of it, the log says so."""
FADE_S = 3600.0
"""Seconds without a report after which half of a slowdown (as a logarithm) is left."""


class DeviceTimes(msgspec.Struct, frozen=True):
    """What one device's reports showed.

    Attributes:
        slowdown: natural logarithm of reported over predicted seconds, for all arms.
        arms: by arm name, that arm's own correction, which is added to ``slowdown``.
        overhead_s: seconds of a round outside the local steps: link, replay, queue; None: not known.
        reported_at: seconds of the server's clock at the last report; None: there was none.
        cold: share of the last report's rows for which a frozen front was run, 0 to 1; 1: none was reported.
    """

    slowdown: float = 0.0
    arms: dict[str, float] = {}
    overhead_s: float | None = None
    reported_at: float | None = None
    cold: float = 1.0


class Expected(msgspec.Struct, frozen=True):
    """Expected seconds of a round with one arm on one device; None: not known.

    Attributes:
        steps_s: seconds of the local steps.
        round_s: seconds of the steps and the overhead.
        source: ``profile`` or ``fleet`` (the device has no profile), each with ``, reports`` where reports corrected
            it; ``unknown`` without either.
    """

    steps_s: float | None
    round_s: float | None
    source: str


def base_seconds(arms: Sequence[PricedArm], fleet_s_per_pass: float | None) -> list[float | None]:
    """Return the seconds of each arm's local steps before any report.

    An arm that is missing in the profile is estimated from its cost and the median seconds per pass of the arms that
    are in it; without a profile, from ``fleet_s_per_pass``, that of the fleet's median device.
    """
    known = [priced.profile_s / priced.cost for priced in arms if priced.profile_s is not None]
    unit = statistics.median(known) if known else fleet_s_per_pass
    return [
        priced.profile_s if priced.profile_s is not None else None if unit is None else priced.cost * unit
        for priced in arms
    ]


def expected(
    priced: PricedArm, base_s: float | None, times: DeviceTimes | None, now: float, fleet_overhead_s: float
) -> Expected:
    """Return the expected seconds of a round; ``base_s`` is the arm's entry of base_seconds.

    A device that has kept activations of a frozen front is expected to run it for as few rows as in its last report.
    """
    if base_s is None:
        return Expected(None, None, "unknown")
    base_s *= price_left(priced.front_share, 1.0 if times is None else times.cold)
    source = "fleet" if priced.profile_s is None else "profile"
    if times is None or times.reported_at is None:
        return Expected(base_s, base_s + fleet_overhead_s, source)
    age_s = max(0.0, now - times.reported_at)  # a monotonic clock starts again when the machine does
    log_ratio = (times.slowdown + times.arms.get(priced.arm.name, 0.0)) * 0.5 ** (age_s / FADE_S)
    steps_s = base_s * math.exp(log_ratio)
    overhead_s = fleet_overhead_s if times.overhead_s is None else times.overhead_s
    return Expected(steps_s, steps_s + overhead_s, f"{source}, reports")


def observe(
    times: DeviceTimes | None,
    arm_name: str,
    base_s: float | None,
    reported_s: float,
    turnaround_s: float,
    now: float,
    device: str = "a device",
    cold: float | None = None,
) -> DeviceTimes:
    """Return a device's times after a report.

    Args:
        times: the times before it; None: there was no report yet.
        arm_name: name of the arm that ran.
        base_s: seconds predicted without reports, for as many runs of a frozen front as there were; None: not known,
            so only the overhead is learned.
        reported_s: seconds of the local steps, as the device reports them.
        turnaround_s: seconds from plan to report on the server's clock: an upper bound of ``reported_s``.
        now: seconds of the server's clock.
        device: name of the device, for the log.
        cold: share of the rows for which a frozen front was run; None: the front is not frozen.
    """
    before = times or DeviceTimes()
    cold = before.cold if cold is None else cold
    if not (math.isfinite(reported_s) and math.isfinite(turnaround_s)) or reported_s <= 0 or turnaround_s <= 0:
        _LOG.warning("%s: a report of %s s within %s s says nothing of its speed", device, reported_s, turnaround_s)
        return before
    if reported_s > turnaround_s:
        _LOG.warning("%s claims %.1f s of work within %.1f s: its clock jumped", device, reported_s, turnaround_s)
    seconds = min(reported_s, turnaround_s)
    spent = turnaround_s - seconds
    known = before.overhead_s
    overhead_s = spent if known is None else known + _TRUST * (spent - known)
    if base_s is None:
        return msgspec.structs.replace(before, overhead_s=overhead_s, reported_at=now, cold=cold)
    ratio = min(max(seconds / base_s, 1 / _MOST_RATIO), _MOST_RATIO)
    first = before.reported_at is None
    if first and not 1 / _SUSPECT < ratio < _SUSPECT:
        _LOG.warning("%s took %.3g times as long as its profile claims: its reports overrule it", device, ratio)
    own = before.arms.get(arm_name, 0.0)
    error = math.log(ratio) - before.slowdown - own
    moved = 1.0 if first else _TRUST
    # The part of the error that the device's slowdown does not take goes to the arm.
    arms = before.arms if first else {**before.arms, arm_name: own + _ARM_TRUST * (1 - moved) * error}
    return DeviceTimes(before.slowdown + moved * error, arms, overhead_s, now, cold)


def fleet_overhead_s(known: Iterable[DeviceTimes]) -> float:
    """Return the median overhead over devices, in seconds; 0 where no device's is known."""
    found = [times.overhead_s for times in known if times.overhead_s is not None]
    return statistics.median(found) if found else 0.0


def fleet_s_per_pass(per_pass: Mapping[str, float]) -> float | None:
    """Return the median over devices of their seconds per pass; None where no device has reported."""
    return statistics.median(per_pass.values()) if per_pass else None
