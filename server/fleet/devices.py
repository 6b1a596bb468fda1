"""One device as the server knows it from its messages, and which devices may not train now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.levels import Level
    from edge_runtime.protocol.presence import Birth, DeviceState
    from edge_runtime.protocol.profile import Profile
    from server.fleet.rest import Rest

SILENT = "silent"
"""The state of a device that has not answered; the server gives it, no device sends it."""


@dataclass
class Device:
    """One device. Unknown is None.

    Attributes:
        name: name of the device.
        state: the last state that it sent: online, busy, offline or lost; ``silent``: the server has said hello, or
            has sent a plan, and the device has not answered.
        birth: its last announcement.
        adapter_sha256: the adapter that it has proved to have.
        link_bytes_per_s: measured speed of its link.
        replay_parameters_per_s: parameters × directions that it replays per second.
        refused_level: the smallest level that did not fit its memory.
        works_on: hash of the bundle that its job trains; None: no job has asked for it yet.
        profile: its newest valid profile of that bundle.
        ineligible: why its owner's rules or its rows keep it from training now; None: they do not.
        heard_at: when it last sent a message, in seconds of the server's clock; None: never.
        hello_pause_s: seconds between the last two hellos that were said for it alone; 0: it has heard the last one.
        hello_due_at: when the next may be said for it, in seconds of the server's clock.
        early_state: the last state of a start that it has not announced yet: a broker keeps order within a topic only.
        quarantine: why it takes part in nothing until the operator decides; None: it is in no quarantine.
        too_old: what of it is older than its job and the bundle need, and what to do; None: none is known
            to be.
        judged: the bundle with the job's switches, and the announcement, that too_old is about; None: it has not been
            judged.
        rest: why and until when it is offered nothing after a refusal or a silence; None: it may be offered work.
    """

    name: str
    state: str = "offline"
    birth: Birth | None = None
    adapter_sha256: str | None = None
    link_bytes_per_s: float | None = None
    replay_parameters_per_s: float | None = None
    refused_level: Level | None = None
    profile: Profile | None = None
    ineligible: str | None = None
    heard_at: float | None = None
    rest: Rest | None = None
    works_on: str | None = None
    hello_pause_s: float = 0.0
    hello_due_at: float = 0.0
    early_state: DeviceState | None = None
    quarantine: str | None = None
    too_old: str | None = None
    judged: tuple[str, Birth] | None = None

    @property
    def is_here(self) -> bool:
        """Whether the device has answered the server's last hello with its announcement and its state."""
        return self.birth is not None and self.state in ("online", "busy")

    @property
    def usable_profile(self) -> Profile | None:
        """Its profile; None also where that was measured on other execution providers than the device has now."""
        measured = None if self.profile is None else self.profile.measured
        if measured is None or self.birth is None:
            return self.profile
        is_the_same = measured.execution_providers == self.birth.execution_providers  # both left out: the processor
        return self.profile if is_the_same else None

    def is_ready(self, now: float) -> bool:
        """Whether the device is here, nothing keeps it from work, and it does not rest; ``now``: server seconds."""
        is_free = self.ineligible is None and self.quarantine is None and self.too_old is None
        return self.is_here and is_free and (self.rest is None or now >= self.rest.until)


def resting(devices: Mapping[str, Device], now: float) -> dict[str, str]:
    """Return why devices that are here are offered nothing at the moment, by name; ``now``: server seconds."""
    reasons = {
        name: device.rest.reason
        for name, device in devices.items()
        if device.rest is not None and now < device.rest.until and device.is_here
    }
    return dict(sorted(reasons.items()))


def ineligible(devices: Mapping[str, Device]) -> dict[str, str]:
    """Return why devices that are connected may not train now, by name."""
    reasons = {
        name: reason
        for name, device in devices.items()
        if (reason := device.quarantine or device.too_old or device.ineligible) is not None and device.is_here
    }
    return dict(sorted(reasons.items()))
