"""Checks and keeps the profiles that devices publish, and gives the planner the newest one of a job's bundle."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ProfileError, ProtocolError
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.presence import ProfileMessage
from edge_runtime.protocol.profile_check import check_profile, missing_graphs
from server.storage.device_queries import newest_profile, profiles_of

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.protocol.profile import Profile
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)


class ProfileStore:
    """The profiles of one fleet's devices.

    Args:
        fleet: name of the fleet.
        ledger: profiles are entered in it.

    Attributes:
        manifests: manifests of the bundles that jobs train, by the bundle's hash; whoever begins a job adds its own.
    """

    def __init__(self, fleet: str, ledger: Ledger) -> None:
        self._fleet, self._ledger = fleet, ledger
        self.manifests: dict[str, Manifest] = {}

    def newest(self, device: str, bundle_sha256: str) -> Profile | None:
        """Return a device's last valid profile of a bundle, from the ledger; None: there is none."""
        return newest_profile(self._ledger, self._fleet, device, bundle_sha256)

    def take(self, device: str, payload: bytes) -> Profile | None:
        """Enter a profile message; return its profile, None where it is invalid.

        An invalid profile is rejected with a reason, and the last valid one stays in use. A profile of another bundle
        is kept for that bundle's jobs.
        """
        payload_sha256 = hashlib.sha256(payload).hexdigest()
        try:
            profile, remarks = self._check(device, payload)
        except (ProtocolError, ProfileError) as error:
            _LOG.warning("%s: its profile is refused: %s", device, error)
            self._ledger.profile_received(self._fleet, device, payload_sha256, None, [error.what])
            return None
        is_news = self._ledger.profile_received(self._fleet, device, payload_sha256, profile, remarks)
        for remark in remarks if is_news else ():
            _LOG.warning("%s: its profile: %s", device, remark)
        return profile

    def _check(self, device: str, payload: bytes) -> tuple[Profile, list[str]]:
        message = decode_message(payload, ProfileMessage)
        if message.device != device:
            raise ProtocolError(
                f"{device} sent the profile of {message.device}",
                "check name in the edge.toml of both: every device needs a name of its own",
            )
        profile = message.profile
        remarks = check_profile(profile)
        if not any(graph.latencies for graph in profile.graphs):
            raise ProfileError("it has no time of any graph", "measure it again: covey-edge profile")
        manifest = self.manifests.get(profile.bundle.sha256)
        if manifest is None:
            model = f"{profile.bundle.sha256[:12]} ({profile.bundle.model})"
            return profile, [*remarks, f"no job here trains its bundle, {model}; it is kept for jobs that will"]
        missing = missing_graphs(profile, manifest, profile.bundle.sha256)
        if missing:
            remarks.append(f"it says nothing of {', '.join(missing)}; their times follow from others")
        return profile, remarks


def profile_history(ledger: Ledger, device: str, fleet: str | None = None) -> list[dict[str, Any]]:
    """Return the profiles kept of a device as plain values, oldest first; ``state`` is ``valid`` or ``refused``.

    Args:
        ledger: the ledger.
        device: name of the device.
        fleet: name of its fleet; None: any.
    """
    found = []
    for kept in profiles_of(ledger, device, fleet):
        profile = kept.profile
        measured = None if profile is None else profile.measured
        found.append(
            {
                "fleet": kept.fleet,
                "device": kept.device,
                "received_at": kept.received_at,
                "state": "refused" if profile is None else "valid",
                "source": None if profile is None else profile.source,
                "board": None if profile is None else profile.facts.board,
                "bundle_sha256": kept.bundle_sha256,
                "measured_at": None if measured is None else measured.measured_at,
                "remarks": kept.remarks,
            }
        )
    return found
