"""Decides whether the device may train now.

Re-evaluates the owner's rules against sensors and clock every few seconds.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.device.board import Board, disk_free_bytes
from edge_runtime.device.eligibility import (
    Conditions,
    EligibilityRules,
    broken_rules,
    check_rules,
    needed_conditions,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
EVERY_S = 10.0
"""Seconds between two evaluations on an idle device."""
_LEAST_TICKS = 50  # of all processors together; over fewer ticks the load is too inexact


class OtherLoad:
    """Share of all processors that other programs used since the last call, without this process and its children.

    Args:
        stat: the kernel's counters, ``/proc/stat``.
        own_s: returns processor seconds of this process and its ended children.
        ticks_per_s: the counters' ticks per second; None: the kernel's.
    """

    def __init__(
        self,
        stat: Path = Path("/proc/stat"),
        own_s: Callable[[], float] = lambda: sum(os.times()[:4]),
        ticks_per_s: float | None = None,
    ) -> None:
        self._stat, self._own_s = stat, own_s
        self._ticks_per_s = ticks_per_s or float(os.sysconf("SC_CLK_TCK"))
        self._last = self._counters()
        self._share: float | None = None

    def __call__(self) -> float | None:
        """Return the share, 0 … 1; None: not known, as at the first calls."""
        now = self._counters()
        if now is None or self._last is None:
            self._last = now
            return None
        busy, total, own = (after - before for after, before in zip(now, self._last, strict=True))
        if total >= _LEAST_TICKS:
            self._last, self._share = now, min(1.0, max(0.0, (busy - own) / total))
        return self._share

    def _counters(self) -> tuple[float, float, float] | None:
        """Return busy and all ticks of all processors, and this process's own."""
        try:
            words = self._stat.read_text().split("\n", 1)[0].split()
            user, nice, system, idle, waiting, *rest = (float(word) for word in words[1:9])
        except (OSError, ValueError):
            return None
        busy = user + nice + system + sum(rest)
        return busy, busy + idle + waiting, self._own_s() * self._ticks_per_s


def board_conditions(rules: EligibilityRules, state_dir: Path, board: Board | None = None) -> Callable[[], Conditions]:
    """Return a function that reads those conditions of this machine that a rule compares.

    What no rule compares stays None: no file of it is opened, and no process is started for it.

    Args:
        rules: the owner's rules.
        state_dir: a folder on the disk whose free space counts.
        board: reads the sensors; None: this machine's.
    """
    sensors = board or Board()
    slows_at_c = sensors.slows_at_c() if rules.most_temperature_c is None else None
    needed = needed_conditions(rules, slows_at_c)
    readers: dict[str, Callable[[], Any]] = {
        "temperature_c": sensors.temperature_c,
        "throttled": sensors.throttled,
        "on_mains": sensors.on_mains,
        "battery": sensors.battery,
        "memory_free_bytes": sensors.memory_free_bytes,
        "disk_free_bytes": lambda: disk_free_bytes(state_dir),
    }
    if "other_load" in needed:
        readers["other_load"] = OtherLoad()
    wanted = {name: reader for name, reader in readers.items() if name in needed}

    def read() -> Conditions:
        return Conditions(slows_at_c=slows_at_c, **{name: reader() for name, reader in wanted.items()})

    return read


def local_now() -> dt.time:
    """Return the local time of day."""
    return dt.datetime.now().astimezone().time()


class Gate:
    """Decides whether the device may train.

    Args:
        rules: the owner's rules.
        read: returns the conditions.
        local_time: returns the time of day.
        clock: returns monotonic seconds.

    Raises:
        ConfigError: see check_rules.
    """

    def __init__(
        self,
        rules: EligibilityRules,
        read: Callable[[], Conditions],
        local_time: Callable[[], dt.time] = local_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._read, self._local_time, self._clock = rules, read, local_time, clock
        self._broken: dict[str, str] = {}
        self._looked_at = clock()
        conditions = read()
        check_rules(rules, conditions)
        self._judge(conditions)

    @property
    def closed(self) -> str | None:
        """Why the device may not train, as of the last evaluation; None: it may."""
        return "; ".join(self._broken.values()) or None

    def look(self, *, now: bool = False) -> bool:
        """Evaluate the rules, at most every EVERY_S seconds unless ``now``; return whether other rules are broken."""
        if not now and self._clock() - self._looked_at < EVERY_S:
            return False
        before = self._broken
        self._looked_at = self._clock()
        self._judge(self._read())
        if before.keys() == self._broken.keys():
            return False
        _LOG.info("%s", "takes work again" if self.closed is None else f"takes no work: {self.closed}")
        return True

    def _judge(self, conditions: Conditions) -> None:
        self._broken = broken_rules(self._rules, conditions, self._local_time(), self._broken)
