"""How long an arm takes on a device: its profile, corrected by the times it reports.

A device has one slowdown, reported over predicted time, for all its arms: heat and load slow them alike. The first
report replaces it whole, whatever the profile claimed; later ones move it half of the way, so that a board that
throttles is known within two or three rounds. A slowdown that nothing has confirmed for a while fades, so that a device
which was left out because it was slow is asked again.
"""

from __future__ import annotations

import logging
import math
import statistics
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from server.bandit.arms import Offer

_LOG = logging.getLogger(__name__)
_TRUST = 0.5
_ARM_TRUST = 0.3
_MOST_RATIO = 1e4
_SUSPECT = 20.0
FADE_S = 3600.0
"""After so many seconds without a report, half of a slowdown (as a logarithm) is left."""


class DeviceTimes(msgspec.Struct, frozen=True):
    """What one device's reports showed.

    Attributes:
        slowdown: logarithm of reported over predicted seconds.
        arms: by arm, what is left of that logarithm beside ``slowdown``.
        overhead_s: seconds of a round that are not local steps: link, replay, queue; None: not known.
        reported_at: clock of the last report; None: there was none.
    """

    slowdown: float = 0.0
    arms: dict[str, float] = {}
    overhead_s: float | None = None
    reported_at: float | None = None


class Expected(msgspec.Struct, frozen=True):
    """Seconds that a round with an arm takes on a device; None: nothing is known of it.

    Attributes:
        steps_s: the local steps.
        round_s: the steps and what comes with them.
        source: ``profile``, ``fleet`` (the device has no profile), either with reported times, or ``unknown``.
    """

    steps_s: float | None
    round_s: float | None
    source: str


def base_seconds(offers: Sequence[Offer], fleet_s_per_pass: float | None) -> list[float | None]:
    """Return seconds of each arm before any report.

    An arm that the profile lacks follows from those that it has, by their costs; without a profile, the fleet's median
    device stands for it.
    """
    known = [made.profile_s / made.cost for made in offers if made.profile_s is not None]
    unit = statistics.median(known) if known else fleet_s_per_pass
    return [
        made.profile_s if made.profile_s is not None else None if unit is None else made.cost * unit for made in offers
    ]


def expected(
    made: Offer, base_s: float | None, times: DeviceTimes | None, now: float, fleet_overhead_s: float
) -> Expected:
    """Return what an arm is expected to take."""
    if base_s is None:
        return Expected(None, None, "unknown")
    source = "fleet" if made.profile_s is None else "profile"
    if times is None or times.reported_at is None:
        return Expected(base_s, base_s + fleet_overhead_s, source)
    age_s = max(0.0, now - times.reported_at)  # a monotonic clock begins anew with the machine
    log_ratio = (times.slowdown + times.arms.get(made.arm.name, 0.0)) * 0.5 ** (age_s / FADE_S)
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
) -> DeviceTimes:
    """Return the times after a report.

    Args:
        times: those before; None: none.
        arm_name: the arm that was run.
        base_s: what it should take, without reports; None: not known, so nothing is learned but the overhead.
        reported_s: seconds of the local steps as the device says.
        turnaround_s: seconds from plan to report on the server's clock: no step can have taken longer.
        now: the server's clock.
        device: its name, for the log.
    """
    before = times or DeviceTimes()
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
        return msgspec.structs.replace(before, overhead_s=overhead_s, reported_at=now)
    ratio = min(max(seconds / base_s, 1 / _MOST_RATIO), _MOST_RATIO)
    first = before.reported_at is None
    if first and not 1 / _SUSPECT < ratio < _SUSPECT:
        _LOG.warning("%s took %.3g times as long as its profile claims: its reports overrule it", device, ratio)
    own = before.arms.get(arm_name, 0.0)
    error = math.log(ratio) - before.slowdown - own
    moved = 1.0 if first else _TRUST
    # What the device as a whole does not explain belongs to the arm.
    arms = before.arms if first else {**before.arms, arm_name: own + _ARM_TRUST * (1 - moved) * error}
    return DeviceTimes(before.slowdown + moved * error, arms, overhead_s, now)


def fleet_overhead_s(known: Iterable[DeviceTimes]) -> float:
    """Return the median overhead, 0 where none is known."""
    found = [times.overhead_s for times in known if times.overhead_s is not None]
    return statistics.median(found) if found else 0.0


def fleet_s_per_pass(per_pass: Mapping[str, float]) -> float | None:
    """Return the median device's seconds a pass; None where no device has reported."""
    return statistics.median(per_pass.values()) if per_pass else None
