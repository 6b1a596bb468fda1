"""Waits until a server has taken a device's birth: the signed message with which it announces itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Devices = Callable[[], Sequence[Mapping[str, Any]]]
    """Returns the server's devices."""

_HERE = ("online", "busy")


def find_device(devices: Sequence[Mapping[str, Any]], fleet: str, name: str) -> Mapping[str, Any] | None:
    """Return what a server says of a device; None: it has never heard of it."""
    return next((one for one in devices if (one["fleet"], one["device"]) == (fleet, name)), None)


def is_born(now: Mapping[str, Any] | None, before: Mapping[str, Any] | None, version: str) -> bool:
    """Whether a device has announced itself since.

    Args:
        now: what the server says of it.
        before: what it said when the device was at rest; None: nothing, or any announcement counts.
        version: the version of Covey that it must have announced.
    """
    if now is None or now["state"] not in _HERE or now["covey_version"] != version:
        return False
    return before is None or now["last_seen"] != before["last_seen"]


def wait_for_birth(
    devices: Devices,
    found: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any] | None],
    born: Callable[[Mapping[str, Any] | None], bool],
    wait: Callable[[], bool],
) -> Mapping[str, Any] | None:
    """Return what the server says of a device once it is born; None: it was not, in the time that there was.

    Args:
        devices: asks the server.
        found: picks the device.
        born: says whether it is born: is_born.
        wait: waits a while; False: there is no more time.
    """
    while True:
        one = found(devices())
        if born(one):
            return one
        if not wait():
            return None
