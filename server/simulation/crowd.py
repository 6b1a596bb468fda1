"""The devices of a simulation: some bytes for each, and an object for those that have been given work."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_runtime.protocol.profile import Profile
    from edge_runtime.protocol.reports import DeltaReport, RoundReport

_WILD = "*?["
_LONGEST_NAME = 63


@dataclass
class SimulatedDevice:
    """A device that has been given work.

    Attributes:
        name: its name.
        index: its number.
        profile: the profile that it announces.
        speed: constant factor on the durations of its profile.
        adapter_sha256: the adapter that it has; None: the one of its bundle.
        report: its last report, until the server has answered it.
        delta: the delta of that report, which the server may ask for.
        kept_rows: rows whose activation of a frozen front it has kept.
        last_round: the last round that it was given; None: none yet.
    """

    name: str
    index: int
    profile: Profile
    speed: float = 1.0
    adapter_sha256: str | None = None
    report: RoundReport | DeltaReport | None = None
    kept_rows: int = 0
    delta: bytes = b""
    last_round: int | None = None


class Crowd:
    """All devices, by number and by name. A device that is never given work takes some tens of bytes.

    Args:
        profiles: the profiles of the devices in turn.
        count: number of devices.
        drift: standard deviation of the logarithm of a device's constant factor on its times.
        work: factor on the times of all devices.
        rng: source of these factors.

    Attributes:
        here: (count,) whether each device is on and connected.
        wanted: (count,) whether its trace wants it to be on; one that dropped out comes back only then.
        starts: (count,) number of its starts.
        here_count: number of devices that are here.
    """

    def __init__(
        self, profiles: Sequence[Profile], count: int, drift: float, work: float, rng: np.random.Generator
    ) -> None:
        self._profiles = profiles
        self._width = len(str(count - 1))
        for profile in profiles:
            if len(self._name(profile, 0)) > _LONGEST_NAME:
                raise ConfigError(
                    f"the board {profile.facts.board!r} has too long a name for a device", "shorten it in the profile"
                )
        self._drawn = drift * rng.standard_normal(count)
        self._work = work
        self._made: dict[int, SimulatedDevice] = {}
        self._slowdowns: dict[int, float] = {}
        self.here = np.ones(count, dtype=bool)
        self.wanted = np.ones(count, dtype=bool)
        self.starts = np.zeros(count, dtype=np.int64)
        self.here_count = count

    def __len__(self) -> int:
        return len(self._drawn)

    def profile(self, index: int) -> Profile:
        """Return a device's profile."""
        return self._profiles[index % len(self._profiles)]

    def name(self, index: int) -> str:
        """Return a device's name: its board, and its number."""
        return self._name(self.profile(index), index)

    def _name(self, profile: Profile, index: int) -> str:
        return f"{profile.facts.board}-{index:0{self._width}}"

    def names(self) -> Iterator[str]:
        """Yield the names of all devices."""
        return map(self.name, range(len(self)))

    def known(self, index: int) -> SimulatedDevice | None:
        """Return a device if it has been given work already."""
        return self._made.get(index)

    def device(self, index: int) -> SimulatedDevice:
        """Return a device, which is made where it is new."""
        if index not in self._made:
            speed = self._work * math.exp(self._drawn[index])
            self._made[index] = SimulatedDevice(self.name(index), index, self.profile(index), speed)
        return self._made[index]

    def index_of(self, name: str) -> int:
        """Return a device's number; raises KeyError where no device has the name."""
        number = name.rpartition("-")[2]
        if not number.isdecimal() or int(number) >= len(self) or self.name(int(number)) != name:
            raise KeyError(name)
        return int(number)

    def matching(self, pattern: str) -> list[int]:
        """Return the numbers of the devices whose names match a pattern; a plain name is looked up, not searched."""
        if any(char in pattern for char in _WILD):
            return [index for index, name in enumerate(self.names()) if fnmatch.fnmatchcase(name, pattern)]
        try:
            return [self.index_of(pattern)]
        except KeyError:
            return []

    def slow_down(self, index: int, factor: float) -> None:
        """Set the factor by which a device's steps take longer from now on, such as from heat."""
        self._slowdowns[index] = factor

    def slowdown(self, index: int) -> float:
        """Return that factor."""
        return self._slowdowns.get(index, 1.0)

    def set_here(self, index: int, *, is_here: bool) -> None:
        """Enter that a device has come or is gone."""
        self.here_count += int(is_here) - int(self.here[index])
        self.here[index] = is_here
        self.starts[index] += is_here

    def nobody_here(self) -> None:
        """Switch all devices off, before anything has begun."""
        self.here[:] = self.wanted[:] = False
        self.here_count = 0

    def all_here(self) -> Iterator[int]:
        """Yield the numbers of the devices that are here as they are reached."""
        return (index for index in range(len(self)) if self.here[index])
