"""How often the whole fleet is looked at: so rarely that looking takes a small share of the server's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.fleet.devices import Device

_ALWAYS = 200
"""Fleets of up to so many devices are looked at after every message."""
_PAUSE_S_A_DEVICE = 20e-6
"""A look takes some microseconds a device, so with this pause it takes at most about a fifth of the time."""
_TOO_FEW = 30
"""Where too few devices are here for anything to change, so many pauses lie between two looks: counting is cheaper."""


def look_pause_s(devices: int) -> float:
    """Return the seconds between two looks at all devices of a fleet, where a message may have changed any of them.

    Without a pause, a fleet that comes up would cost the square of its size: each announcement a look at everybody.
    """
    return 0.0 if devices <= _ALWAYS else devices * _PAUSE_S_A_DEVICE


class Looks:
    """When one job looks at all devices again after a look in vain: too few could be offered its round, or its end."""

    def __init__(self) -> None:
        self._count_at = self._look_at = 0.0

    def is_due(self, devices: Mapping[str, Device], needed: int, now: float) -> bool:
        """Return whether to look.

        Args:
            devices: all devices, by name.
            needed: with fewer that are here, the look is in vain, and shows only how many are missing.
            now: seconds of the server's clock.
        """
        if now < self._count_at:
            return False
        if now >= self._look_at:
            return True
        self._count_at = now + look_pause_s(len(devices))
        return sum(device.is_here for device in devices.values()) >= needed

    def was_in_vain(self, devices: int, now: float) -> None:
        """Enter a look; ``devices``: how many it was at."""
        pause_s = look_pause_s(devices)
        self._count_at, self._look_at = now + pause_s, now + _TOO_FEW * pause_s
