"""Asks, now and then, whether the device may work: sensors, clock and the owner's rules put together."""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.device.board import Board
from edge_runtime.device.eligibility import Conditions, EligibilityRules, broken_rules, check_rules

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
EVERY_S = 10.0
"""How often an idle device looks at its sensors."""
_LEAST_TICKS = 50  # of all processors together: fewer say nothing of their load


class OtherLoad:
    """Share of all processors that other programs used since it was asked last; this one and its children do not count.

    Args:
        stat: the kernel's counters, ``/proc/stat``.
        own_s: processor seconds of this process and its ended children.
        ticks_per_s: the counters' unit.
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
        """Return the share, 0 … 1; None: not known (yet)."""
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


def board_conditions(state_dir: Path, board: Board | None = None) -> Callable[[], Conditions]:
    """Return what reads the conditions of this machine.

    Args:
        state_dir: where bundles are kept.
        board: reads the sensors; None: this machine's.
    """
    sensors, other_load = board or Board(), OtherLoad()
    slows_at_c = sensors.slows_at_c()

    def read() -> Conditions:
        reading = sensors.read(state_dir, power=False)
        return Conditions(
            temperature_c=reading.temperature_c,
            slows_at_c=slows_at_c,
            throttled=reading.throttled,
            other_load=other_load(),
            on_mains=reading.on_mains,
            battery=reading.battery,
            memory_free_bytes=reading.memory_free_bytes,
            disk_free_bytes=reading.disk_free_bytes,
        )

    return read


def local_now() -> dt.time:
    """Return the time of the day where the device is."""
    return dt.datetime.now().astimezone().time()


class Gate:
    """Says whether the device takes work.

    Args:
        rules: the owner's.
        read: reads the conditions.
        local_time: the time of the day.
        clock: monotonic seconds.

    Attributes:
        closed: why the device takes no work; None: it does.

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
        """Why the device takes no work, as it was when it was looked at last; None: it does."""
        return "; ".join(self._broken.values()) or None

    def look(self, *, now: bool = False) -> bool:
        """Look again, at most every EVERY_S unless ``now``; return whether anything changed."""
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
