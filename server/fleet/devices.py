"""The devices as the server sees them: who is there, with which adapter, and who is chosen for a round."""

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
    """One device: its last state, its last birth, the adapter it has shown to have, and what it measured.

    ``refused_level``: the smallest level that it could not hold. None: not known. ``ineligible``: why it takes no work
    now, by its owner's rules. None: it does.
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
        """Whether it can be spoken to."""
        return self.birth is not None and self.state in ("online", "busy")


def ineligible(devices: Mapping[str, Device]) -> dict[str, str]:
    """Return why devices that are here take no work, by name."""
    return {
        name: device.ineligible
        for name, device in sorted(devices.items())
        if device.is_here and device.ineligible is not None
    }
