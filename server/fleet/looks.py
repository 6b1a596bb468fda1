"""How often the whole fleet is looked at: so rarely that looking takes a bounded share of the server's time."""

from __future__ import annotations

_ALWAYS = 200
"""Fleets of up to so many devices are looked at after every message."""
_PAUSE_S_A_DEVICE = 20e-6
"""A look takes some microseconds a device, so with this pause it takes at most about a fifth of the time."""


def look_pause_s(devices: int) -> float:
    """Return the seconds between two looks at all devices of a fleet, where a message may have changed any of them.

    Without a pause, a fleet that comes up would cost the square of its size: each announcement a look at everybody.
    """
    return 0.0 if devices <= _ALWAYS else devices * _PAUSE_S_A_DEVICE
