"""When simulated devices are switched on: always, or at night, in the time zones that a fleet is spread over."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DAY_S = 86_400.0
_HOUR_S = 3600.0
_SPREAD_S, _MOST_SPREAD_S = 1.0 * _HOUR_S, 2.0 * _HOUR_S
_NIGHT_S, _NIGHT_SPREAD_S = 8.0 * _HOUR_S, 1.0 * _HOUR_S
_SHORTEST_S, _LONGEST_S = 4.0 * _HOUR_S, 12.0 * _HOUR_S
_MISSED = 0.1


class Nights:
    """Devices that are on in the night, as phones are that train only while they charge and rest.

    Each device has an hour of the day at which its night begins, from a time zone drawn evenly. Every night begins up
    to two hours earlier or later (standard deviation: 1 h), lasts 8 h (standard deviation 1 h, between 4 and 12 h), and
    one in ten is missed. These figures are ours; no fleet was measured.

    Memory: some tens of bytes a device.

    Args:
        devices: number of devices.
        zones_h: hours that their time zones are spread over.
        rng: source of the draws, of this object alone: nights are drawn as time goes on.
    """

    def __init__(self, devices: int, zones_h: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self._begins_s = rng.random(devices) * zones_h * _HOUR_S

    def changes(self) -> Iterator[tuple[float, int, bool]]:
        """Yield virtual second, index of a device and whether it is on from then; by time, without end.

        Those before second 0 say which devices are on at the beginning.
        """
        rest = _Changes(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=bool))
        for day in itertools.count(-1):
            rest = rest.with_those_of(self._nights(day)).by_time()
            # No night of a later day begins before this.
            until = int(np.searchsorted(rest.at_s, (day + 1) * DAY_S - _MOST_SPREAD_S))
            yield from zip(
                rest.at_s[:until].tolist(), rest.device[:until].tolist(), rest.is_on[:until].tolist(), strict=True
            )
            rest = rest.after(until)

    def _nights(self, day: int) -> _Changes:
        size = self._begins_s.size
        shift_s = np.clip(_SPREAD_S * self._rng.standard_normal(size), -_MOST_SPREAD_S, _MOST_SPREAD_S)
        lengths_s = np.clip(_NIGHT_S + _NIGHT_SPREAD_S * self._rng.standard_normal(size), _SHORTEST_S, _LONGEST_S)
        kept = np.flatnonzero(self._rng.random(size) >= _MISSED)
        begins_s = (day * DAY_S + self._begins_s + shift_s)[kept]
        ends_s = begins_s + lengths_s[kept]
        is_on = np.repeat([True, False], kept.size)
        return _Changes(np.concatenate([begins_s, ends_s]), np.concatenate([kept, kept]), is_on)


class _Changes:
    """Changes as columns.

    Args:
        at_s: (changes,) virtual seconds.
        device: (changes,) indices of devices.
        is_on: (changes,) whether each is on from then.
    """

    def __init__(self, at_s: NDArray[np.float64], device: NDArray[np.int64], is_on: NDArray[np.bool_]) -> None:
        self.at_s, self.device, self.is_on = at_s, device, is_on

    def with_those_of(self, other: _Changes) -> _Changes:
        return _Changes(
            np.concatenate([self.at_s, other.at_s]),
            np.concatenate([self.device, other.device]),
            np.concatenate([self.is_on, other.is_on]),
        )

    def by_time(self) -> _Changes:
        order = np.argsort(self.at_s, kind="stable")
        return _Changes(self.at_s[order], self.device[order], self.is_on[order])

    def after(self, count: int) -> _Changes:
        return _Changes(self.at_s[count:], self.device[count:], self.is_on[count:])
