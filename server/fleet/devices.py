"""One device as the server knows it from its messages, and which devices may not train now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.protocol.messages import Birth
    from edge_runtime.protocol.profile import Profile


@dataclass
class Device:
    """One device. Unknown is None.

    Attributes:
        name: name of the device.
        state: the last state that it sent: online, busy, offline or lost.
        birth: its last announcement.
        adapter_sha256: the adapter that it has proved to have.
        link_bytes_per_s: measured speed of its link.
        replay_parameters_per_s: parameters × directions that it replays per second.
        refused_level: the smallest level that did not fit its memory.
        profile: its newest valid profile of the job's bundle.
        ineligible: why its owner's rules or its rows keep it from training now; None: they do not.
    """

    name: str
    state: str = "offline"
    birth: Birth | None = None
    adapter_sha256: str | None = None
    link_bytes_per_s: float | None = None
    replay_parameters_per_s: float | None = None
    refused_level: int | None = None
    profile: Profile | None = None
    ineligible: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether the device is connected and has announced itself."""
        return self.birth is not None and self.state in ("online", "busy")


def ineligible(devices: Mapping[str, Device]) -> dict[str, str]:
    """Return why devices that are connected may not train now, by name."""
    return {
        name: device.ineligible
        for name, device in sorted(devices.items())
        if device.is_here and device.ineligible is not None
    }
