"""What a device says without being asked: who it is, what it measured, what it is doing, whether it takes work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.agent.birth import make_birth
from edge_runtime.errors import ProfileError, ProtocolError
from edge_runtime.network.transport import Will
from edge_runtime.protocol.messages import DeviceState, ProfileMessage, encode_message
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile
from edge_runtime.protocol.topics import Kind, topic_for

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import Workshop
    from edge_runtime.device.gate import Gate
    from edge_runtime.network.transport import Transport
    from edge_runtime.store.store import Journal, Store

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 1000


def lost_will(config: EdgeConfig, boot_id: str) -> Will:
    """Return the last will: the broker says ``lost`` for a device that vanishes."""
    state = DeviceState(state="lost", boot_id=boot_id)
    return Will(topic_for(config.fleet, config.name, "state"), encode_message(state))


class Announcer:
    """Publishes what is retained.

    Args:
        config: the device's configuration.
        store: where its profile is kept.
        transport: its connection.
        boot_id: new with every start.
        gate: whether it takes work; looked at by others.
    """

    def __init__(self, config: EdgeConfig, store: Store, transport: Transport, boot_id: str, gate: Gate) -> None:
        self._config, self._store, self._transport = config, store, transport
        self._boot_id, self._gate = boot_id, gate

    def _publish(self, kind: Kind, payload: bytes) -> None:
        topic = topic_for(self._config.fleet, self._config.name, kind)
        self._transport.publish(topic, payload, retain=True)

    def all(self, journal: Journal, workshop: Workshop | None) -> None:
        """Say everything: the connection is new."""
        self.capabilities(journal, workshop)
        self.state("online")

    def capabilities(self, journal: Journal, workshop: Workshop | None) -> None:
        """Say who and what the device is, and what it measured: at first, and when its bundle is another one."""
        birth = make_birth(self._config, self._boot_id, journal, workshop)
        self._publish("birth", encode_message(birth))
        self._profile(journal.bundle_sha256)

    def state(self, state: str) -> None:
        """Say what the device is doing, and why it takes no work where that is so."""
        reason = self._gate.closed
        message = DeviceState(
            state=state,  # type: ignore[arg-type]
            boot_id=self._boot_id,
            ineligible=None if reason is None else reason[:_LONGEST_REASON],
        )
        self._publish("state", encode_message(message))

    def goodbye(self) -> tuple[str, bytes]:
        """Return the last message of a device that leaves in order: its state, ``offline``."""
        message = DeviceState(state="offline", boot_id=self._boot_id)
        return topic_for(self._config.fleet, self._config.name, "state"), encode_message(message)

    def _profile(self, bundle_sha256: str | None) -> None:
        """Publish the profile that ``covey-edge profile`` has kept, so that a new broker or server has it too."""
        try:
            profile = decode_profile((self._store.root / PROFILE_FILE).read_bytes())
            payload = encode_message(ProfileMessage(device=self._config.name, profile=profile))
        except FileNotFoundError:
            return
        except (OSError, ProfileError, ProtocolError) as error:
            _LOG.warning("the kept profile is not sent: %s", error)
            return
        if bundle_sha256 not in (None, profile.bundle.sha256):
            _LOG.info("the kept profile is of another bundle; measure this one: covey-edge profile")
            return
        self._publish("profile", payload)
