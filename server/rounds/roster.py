"""The devices of a fleet, as their messages show them; every change is written to the ledger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.presence import DeviceState
from server import events
from server.fleet.devices import SILENT, Device
from server.fleet.name_watch import NameWatch
from server.fleet.rest import next_rest
from server.storage import device_queries

if TYPE_CHECKING:
    from edge_runtime.protocol.presence import Birth
    from server.events import Observer
    from server.profiles.received import ProfileStore
    from server.storage.ledger import Ledger

_FIRST_HELLO_PAUSE_S = 1.0
_LONGEST_HELLO_PAUSE_S = 60.0
_LOG = logging.getLogger(__name__)


class Roster:
    """The devices of one fleet.

    Args:
        fleet: name of the fleet.
        profiles: the devices' profiles.
        ledger: every change is written to it.
        observe: receives events.

    Attributes:
        fleet: name of the fleet.
        profiles: the devices' profiles.
        devices: the devices that have sent a message, by name.
        names: whether two machines use one name.
        epoch: of the server's last hello; only devices that have answered it are here. None: it has said none yet.
        epoch_began_at: when it said it, in seconds of the server's clock.
        has_identities: whether each device has an identity of its own: two machines with one are put in quarantine.
    """

    def __init__(self, fleet: str, profiles: ProfileStore, ledger: Ledger, observe: Observer) -> None:
        self.fleet = fleet
        self.profiles = profiles
        self._ledger = ledger
        self._observe = observe
        self.devices: dict[str, Device] = {}
        self.names = NameWatch()
        self.epoch: str | None = None
        self.epoch_began_at = 0.0
        self.has_identities = False
        self._quarantined = device_queries.quarantined_devices(ledger, fleet)

    def begin_epoch(self, epoch: str, now: float) -> None:
        """Begin an epoch: nobody is here until it answers the hello that carries it."""
        self.epoch, self.epoch_began_at = epoch, now
        for device in self.devices.values():
            if device.is_here:
                device.state = SILENT
        self._ledger.devices_silent(self.fleet)

    def device(self, name: str) -> Device:
        """Return a device, which may be new."""
        if name not in self.devices:
            self.devices[name] = Device(name, quarantine=self._quarantined.get(name))
        return self.devices[name]

    def forget(self, name: str) -> bool:
        """Forget a device; return whether it was known."""
        was_heard = self.devices.pop(name, None) is not None
        return self._ledger.forget_device(self.fleet, name) or was_heard

    def works_on(self, device: Device, bundle_sha256: str) -> None:
        """Enter which bundle a device's work is on; its profile and its refused level are those of this bundle."""
        if device.works_on != bundle_sha256:
            device.works_on, device.refused_level = bundle_sha256, None
            device.profile = self.profiles.newest(device.name, bundle_sha256)

    def is_too_old(self, device: Device, reason: str | None) -> None:
        """Enter why a device is too old for its job's bundle (None: it is not), in the ledger too, and say it."""
        before, device.too_old = device.too_old, reason
        if reason is None and before is None and (device.judged is not None or device.rest is not None):
            return
        rests = None if device.rest is None else device.rest.reason
        self._ledger.device_reason(self.fleet, device.name, reason or rests)
        if reason is None and before is None:
            return  # the ledger may have had it from before the server's restart
        if reason is not None:
            _LOG.error("%s gets no work: %s", device.name, reason)
        shown = reason or device.ineligible
        self._observe(events.DeviceChanged(device=device.name, state=device.state, ineligible=shown))

    def needs_hello(self, device: Device, now: float) -> bool:
        """Whether the hello is published again for a device that announced itself without this epoch.

        Each time in a row, the next is twice as far away: the announcement may be one that a broker retains for ever.
        """
        if self.epoch is None or now < device.hello_due_at:
            return False
        device.hello_pause_s = min(_LONGEST_HELLO_PAUSE_S, max(_FIRST_HELLO_PAUSE_S, 2 * device.hello_pause_s))
        device.hello_due_at = now + device.hello_pause_s
        return True

    def online(self) -> list[str]:
        """Return the names of the devices that are online, sorted."""
        return sorted(device.name for device in list(self.devices.values()) if device.is_here)  # other threads ask too

    def take_birth(self, device: Device, birth: Birth) -> bool:
        """Take in a device's announcement; returns whether it has connected anew and is here.

        One of another epoch is kept for its facts only: the broker may have retained it for a device that is gone.

        Raises:
            ProtocolError: the announcement is in another device's name.
        """
        if birth.device != device.name:
            raise ProtocolError(
                f"{device.name} announced itself as {birth.device}",
                "check name in the edge.toml of both: every device needs a name of its own",
            )
        last, device.birth, device.adapter_sha256 = device.birth, birth, birth.adapter_sha256
        self._ledger.device_born(self.fleet, device.name, msgspec.json.encode(birth).decode())
        is_new = birth.epoch == self.epoch and (last is None or _connection(last) != _connection(birth))
        if is_new:
            self.may_work(device)  # what kept it from work may be mended
        early = device.early_state
        if early is not None and early.boot_id == birth.boot_id:
            device.early_state = None
            self.take_state(device, early)
        return is_new

    def watch_name(self, birth: Birth, now: float) -> None:
        """Say it where an announcement under the current epoch shows that two machines use one name."""
        found = self.names.take(birth, now)
        if found is not None:
            _LOG.error("%s; %s", found.what, found.hint)
            starts = [str(found.first), str(found.second)]
            self._observe(events.NameDoubled(device=found.device, starts=starts))
            if self.has_identities:
                self.quarantine(found.device, f"{found.what}: a card was copied, or its keys were")

    def quarantine(self, name: str, reason: str | None) -> bool:
        """Put a device in quarantine until the operator decides, or (None) let it out; return whether it is known."""
        self._quarantined.pop(name, None)
        if reason is not None:
            self._quarantined[name] = reason
            _LOG.error(
                "%s is in quarantine; switch one off and say covey device release %s, or covey device revoke %s",
                name,
                name,
                name,
            )
        if name in self.devices:
            self.devices[name].quarantine = reason
        if reason is None:
            self.names.forget(name)
        return self._ledger.device_quarantined(self.fleet, name, reason)

    def take_state(self, device: Device, state: DeviceState) -> None:
        """Take in a device's state, unless it is of another epoch or of another start than its announcement.

        One of another start counts once that start is announced: the two may overtake each other.
        """
        is_here = state.state in ("online", "busy")
        answered = device.birth is not None and device.birth.epoch == self.epoch
        if is_here and state.epoch != self.epoch:
            return
        if answered and device.birth is not None and state.boot_id != device.birth.boot_id:
            device.early_state = state
            return
        if device.ineligible is not None and state.ineligible is None:
            self.may_work(device)
        if (device.state, device.ineligible) != (state.state, state.ineligible):
            device.state, device.ineligible = state.state, state.ineligible
            self._ledger.device_state(self.fleet, device.name, state.state, state.ineligible)
            self._observe(events.DeviceChanged(device=device.name, state=state.state, ineligible=state.ineligible))

    def keeps_silent(self, device: Device, reason: str, now: float) -> None:
        """Enter that a device does not answer: it is offered nothing for a while, and is back once it speaks."""
        device.state = SILENT
        self.rests(device, reason, now)
        self._ledger.device_state(self.fleet, device.name, SILENT, device.ineligible)
        self._observe(events.DeviceChanged(device=device.name, state=SILENT, ineligible=device.ineligible))

    def rests(self, device: Device, reason: str, now: float) -> None:
        """Enter why a device is offered nothing for a while: its refusal, or its silence."""
        device.rest = next_rest(device.rest, reason, now)
        self._ledger.device_reason(self.fleet, device.name, reason)

    def may_work(self, device: Device) -> None:
        """Enter that nothing keeps a device from work any more."""
        if device.rest is not None:
            device.rest = None
            self._ledger.device_reason(self.fleet, device.name, None)

    def heard(self, device: Device, now: float) -> None:
        """Enter that a device has sent something."""
        device.heard_at = now
        if device.birth is not None and device.birth.epoch == self.epoch:
            device.hello_pause_s = device.hello_due_at = 0.0
        if device.state == SILENT and device.birth is not None and device.birth.epoch == self.epoch:
            self.take_state(device, DeviceState(state="online", boot_id=device.birth.boot_id, epoch=self.epoch))

    def take_profile(self, device: Device, payload: bytes) -> None:
        """Take in a profile message; an invalid profile is rejected, and the last valid one stays in use."""
        profile = self.profiles.take(device.name, payload)
        if profile is not None and profile.bundle.sha256 == device.works_on:
            device.profile = profile

    def prove(self, device: Device, adapter_sha256: str) -> None:
        """Enter that a device has proved to have an adapter."""
        device.adapter_sha256 = adapter_sha256
        self._ledger.device_proved(self.fleet, device.name, adapter_sha256)


def _connection(birth: Birth) -> tuple[str, int, str | None]:
    """Return what is new with every start, every connection and every hello."""
    return birth.boot_id, birth.connection, birth.epoch
