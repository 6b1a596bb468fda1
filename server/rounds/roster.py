"""The devices of a fleet, as their messages show them; every change is written to the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ProtocolError
from server import events
from server.fleet.devices import Device
from server.profiles.received import ProfileStore

if TYPE_CHECKING:
    from edge_runtime.protocol.messages import Birth, DeviceState
    from server.events import Observer
    from server.job.fitted import FittedJob
    from server.storage.ledger import Ledger


class Roster:
    """The devices of one fleet.

    Args:
        fleet: name of the fleet.
        fitted: the job; profiles of its bundle are used.
        ledger: every change is written to it.
        observe: receives events.

    Attributes:
        devices: the devices that have sent a message, by name.
    """

    def __init__(self, fleet: str, fitted: FittedJob, ledger: Ledger, observe: Observer) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._observe = observe
        self._profiles = ProfileStore(fleet, fitted, ledger)
        self.devices: dict[str, Device] = {}

    def device(self, name: str) -> Device:
        """Return a device; one that is new has the profile that the ledger has of it."""
        if name not in self.devices:
            self.devices[name] = Device(name, profile=self._profiles.newest(name))
        return self.devices[name]

    def online(self) -> list[str]:
        """Return the names of the devices that are online, sorted."""
        return sorted(device.name for device in self.devices.values() if device.is_here)

    def take_birth(self, device: Device, birth: Birth) -> bool:
        """Take in a device's announcement; returns whether the device has started anew.

        Raises:
            ProtocolError: the announcement is in another device's name.
        """
        if birth.device != device.name:
            raise ProtocolError(
                f"{device.name} announced itself as {birth.device}",
                "check name in the edge.toml of both: every device needs a name of its own",
            )
        is_new_start = device.birth is None or device.birth.boot_id != birth.boot_id
        device.birth, device.adapter_sha256 = birth, birth.adapter_sha256
        self._ledger.device_born(self._fleet, device.name, msgspec.json.encode(birth).decode())
        return is_new_start

    def take_state(self, device: Device, state: DeviceState) -> None:
        """Take in a device's state."""
        if (device.state, device.ineligible) != (state.state, state.ineligible):
            device.state, device.ineligible = state.state, state.ineligible
            self._ledger.device_state(self._fleet, device.name, state.state, state.ineligible)
            self._observe(events.DeviceChanged(device=device.name, state=state.state, ineligible=state.ineligible))

    def take_profile(self, device: Device, payload: bytes) -> None:
        """Take in a profile message; an invalid profile is rejected, and the last valid one stays in use."""
        device.profile = self._profiles.take(device.name, payload)

    def prove(self, device: Device, adapter_sha256: str) -> None:
        """Enter that a device has proved to have an adapter."""
        device.adapter_sha256 = adapter_sha256
        self._ledger.device_proved(self._fleet, device.name, adapter_sha256)
