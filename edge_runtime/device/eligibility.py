"""The owner's rules for when a device may train, as pure functions of its sensors and its clock.

A broken rule stays broken until the value is better than the limit by a margin. Otherwise a board that cools while it
rests would be asked again at once, and training heats it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Collection, Mapping

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_NO_LIMIT_C = 150.0
STRICTER: dict[str, Callable[[float], float]] = {
    "most_temperature_c": lambda limit: limit - 5.0,
    "most_other_load": lambda limit: limit * 0.8,
    "least_battery": lambda limit: min(1.0, limit + 0.05),
    "least_memory_mb": lambda limit: limit * 1.1,
    "least_disk_mb": lambda limit: limit * 1.1,
}
"""The limit that applies while a rule is broken, by the rule's name."""


class EligibilityRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[eligibility]`` of edge.toml; None: there is no such rule.

    Attributes:
        most_temperature_c: of the hottest thermal zone; None: the temperature at which the board slows down, if that is
            known. 150: no limit.
        not_throttled: whether a board whose clock is held down does not train.
        most_other_load: share of all processors that other programs may use, 0 … 1.
        on_mains: whether a supply or charger must be connected.
        least_battery: charge, 0 … 1.
        least_memory_mb: free memory, in 10⁶ bytes.
        least_disk_mb: free disk space, in 10⁶ bytes.
        hours: local times, ``22:00-06:00``; a window may span midnight. Empty: always.
        unknown: whether a rule whose sensor cannot be read allows or refuses training.
    """

    most_temperature_c: Annotated[float, msgspec.Meta(gt=0, le=_NO_LIMIT_C)] | None = None
    not_throttled: bool = False
    most_other_load: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    on_mains: bool = False
    least_battery: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    least_memory_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    least_disk_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    hours: list[str] = []
    unknown: Literal["allow", "refuse"] = "allow"

    def __post_init__(self) -> None:
        for window in self.hours:
            if not _WINDOW.fullmatch(window):
                raise ValueError(f"hours has {window!r}, which is not a window such as 22:00-06:00")


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The values that the rules compare, at one moment; None: not known.

    Attributes:
        temperature_c: hottest thermal zone.
        slows_at_c: the temperature at which the board's own firmware slows it down.
        throttled: whether the clock is held down.
        other_load: share of all processors that other programs use, 0 … 1.
        on_mains: whether a supply or charger is connected.
        battery: charge, 0 … 1.
        memory_free_bytes: memory that this process can still get.
        disk_free_bytes: free space of the disk that holds the bundles.
    """

    temperature_c: float | None = None
    slows_at_c: float | None = None
    throttled: bool | None = None
    other_load: float | None = None
    on_mains: bool | None = None
    battery: float | None = None
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None


def needed_conditions(rules: EligibilityRules, slows_at_c: float | None) -> frozenset[str]:
    """Return the names of the conditions that some rule compares; the others need not be read.

    Args:
        rules: the owner's rules.
        slows_at_c: see Conditions.
    """
    limit = rules.most_temperature_c if rules.most_temperature_c is not None else slows_at_c
    wanted = {
        "temperature_c": limit not in {None, _NO_LIMIT_C},
        "throttled": rules.not_throttled,
        "other_load": rules.most_other_load is not None,
        "on_mains": rules.on_mains,
        "battery": rules.least_battery is not None,
        "memory_free_bytes": rules.least_memory_mb is not None,
        "disk_free_bytes": rules.least_disk_mb is not None,
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def broken_rules(
    rules: EligibilityRules, now: Conditions, local_time: dt.time, before: Collection[str] = ()
) -> dict[str, str]:
    """Return the broken rules, each with its reason as half a sentence, by name; empty: the device may train.

    Args:
        rules: the owner's rules.
        now: what the sensors read.
        local_time: the time of day.
        before: names of the rules that were broken at the last evaluation; their limits are stricter: see STRICTER.
    """
    found = _broken_limits(rules, now, before)
    for name, wanted, value, good, otherwise in (
        ("not_throttled", rules.not_throttled, now.throttled, False, "it is throttled"),
        ("on_mains", rules.on_mains, now.on_mains, True, "it runs on battery"),
    ):
        if wanted and value is not good and (value is not None or rules.unknown == "refuse"):
            found[name] = otherwise if value is not None else f"{name} cannot be told"
    if rules.hours and not any(_inside(window, local_time) for window in rules.hours):
        found["hours"] = f"it is {local_time:%H:%M}, outside {', '.join(rules.hours)}"
    return found


def _limits(rules: EligibilityRules, now: Conditions) -> dict[str, tuple[float | None, float | None, str]]:
    """Return value, limit and description of each rule with a limit, by the rule's name."""
    memory, disk = (None if b is None else b / 1e6 for b in (now.memory_free_bytes, now.disk_free_bytes))
    hottest = rules.most_temperature_c
    if hottest is None and now.temperature_c is not None:
        hottest = now.slows_at_c
    return {
        "most_temperature_c": (now.temperature_c, None if hottest == _NO_LIMIT_C else hottest, "°C"),
        "most_other_load": (now.other_load, rules.most_other_load, "of the processors at other work"),
        "least_battery": (now.battery, rules.least_battery, "of the battery's charge"),
        "least_memory_mb": (memory, rules.least_memory_mb, "MB of memory free"),
        "least_disk_mb": (disk, rules.least_disk_mb, "MB of disk free"),
    }


def _broken_limits(rules: EligibilityRules, now: Conditions, before: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, (value, limit, what) in _limits(rules, now).items():
        if limit is None:
            continue
        if value is None:
            if rules.unknown == "refuse":
                found[name] = f"{name} cannot be told"
            continue
        bound = STRICTER[name](limit) if name in before else limit
        is_most = name.startswith("most_")
        if value > bound if is_most else value < bound:
            found[name] = f"{value:.3g} {what}, {'above' if is_most else 'below'} {bound:.3g}"
    return found


def check_rules(rules: EligibilityRules, now: Conditions) -> None:
    """Reject, at start, rules that this board can never follow.

    Raises:
        ConfigError: ``unknown`` is ``refuse``, and the sensor of a rule that is set cannot be read on this board.
    """
    if rules.unknown == "allow":
        return
    limits: Mapping[str, tuple[object, object, str]] = _limits(rules, now) | {
        "not_throttled": (now.throttled, rules.not_throttled or None, ""),
        "on_mains": (now.on_mains, rules.on_mains or None, ""),
    }
    # The load of other programs is known only at the second reading.
    blind = [
        n for n, (value, rule, _) in limits.items() if rule is not None and value is None and n != "most_other_load"
    ]
    if blind:
        raise ConfigError(
            f"[eligibility] has {', '.join(blind)}, but this board has no such sensor",
            'leave the rule out, or set unknown = "allow"',
        )


def _inside(window: str, now: dt.time) -> bool:
    """Whether a time is in a window, which includes its first minute and not its last; ``x-x`` is the whole day."""
    found = _WINDOW.fullmatch(window)
    assert found is not None  # noqa: S101 __post_init__ has checked it
    hours = [int(part) for part in found.groups()]
    start, stop, minute = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3], now.hour * 60 + now.minute
    return start <= minute < stop if start < stop else minute >= start or minute < stop
