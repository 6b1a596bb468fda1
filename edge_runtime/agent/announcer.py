"""Messages that the device sends on its own: announcement, profile, state. The broker retains them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from edge_runtime.agent.birth import Session, make_birth
from edge_runtime.errors import ProfileError, ProtocolError
from edge_runtime.network.transport import Will
from edge_runtime.protocol.messages import DeviceState, Hello, ProfileMessage, encode_message
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile
from edge_runtime.protocol.topics import Kind, topic_for

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.device.machine import Machine
    from edge_runtime.network.transport import Transport
    from edge_runtime.store.journal import Journal
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 1000


def lost_will(config: EdgeConfig, boot_id: str) -> Will:
    """Return the last will: the broker publishes the state ``lost`` when a device vanishes."""
    state = DeviceState(state="lost", boot_id=boot_id)
    return Will(topic_for(config.fleet, config.name, "state"), encode_message(state))


class Announcer:
    """Publishes the device's retained messages.

    Args:
        config: the device's configuration.
        store: the state directory, which holds the device's profile.
        transport: its connection.
        boot_id: new with every start of the process.
        machine: its gate, which the agent re-evaluates, and its free memory.
    """

    def __init__(self, config: EdgeConfig, store: Store, transport: Transport, boot_id: str, machine: Machine) -> None:
        self._config, self._store, self._transport = config, store, transport
        self._session, self._machine = Session(boot_id), machine
        self._doing: Literal["online", "busy"] = "online"

    def _publish(self, kind: Kind, payload: bytes) -> None:
        topic = topic_for(self._config.fleet, self._config.name, kind)
        self._transport.publish(topic, payload, retain=True)

    def connected(self, journal: Journal, loaded: LoadedBundle | None) -> None:
        """Publish every message: the connection is new. The server's hello may follow."""
        self._session.connections += 1
        self._all(journal, loaded)

    def heard_hello(self, hello: Hello, journal: Journal, loaded: LoadedBundle | None) -> None:
        """Answer the server's hello with every message, unless its epoch has been answered."""
        if hello.epoch != self._session.epoch:
            self._session.epoch = hello.epoch
            self._all(journal, loaded)

    def _all(self, journal: Journal, loaded: LoadedBundle | None) -> None:
        self.capabilities(journal, loaded)
        self.state(self._doing)

    def capabilities(self, journal: Journal, loaded: LoadedBundle | None) -> None:
        """Publish the birth message and the profile: on a new connection, and when the bundle has changed."""
        birth = make_birth(self._config, self._session, journal, loaded, self._machine.free_bytes())
        self._publish("birth", encode_message(birth))
        self._profile(journal.bundle_sha256)

    def state(self, state: Literal["online", "busy"]) -> None:
        """Publish what the device is doing and, where the owner's rules keep it from training, why."""
        self._doing = state
        reason = self._machine.gate.closed
        message = DeviceState(
            state=state,
            boot_id=self._session.boot_id,
            epoch=self._session.epoch,
            ineligible=None if reason is None else reason[:_LONGEST_REASON],
        )
        self._publish("state", encode_message(message))

    def goodbye(self) -> tuple[str, bytes]:
        """Return topic and payload of the state ``offline``, the last message of a device that shuts down properly."""
        message = DeviceState(state="offline", boot_id=self._session.boot_id)
        return topic_for(self._config.fleet, self._config.name, "state"), encode_message(message)

    def _profile(self, bundle_sha256: str | None) -> None:
        """Publish the profile that ``covey-edge profile`` has saved, so that a new broker or server gets it too."""
        try:
            profile = decode_profile((self._store.root / PROFILE_FILE).read_bytes())
            payload = encode_message(ProfileMessage(device=self._config.name, profile=profile))
        except FileNotFoundError:
            return
        except (OSError, ProfileError, ProtocolError) as error:
            _LOG.warning("the saved profile is not sent: %s", error)
            return
        if bundle_sha256 not in (None, profile.bundle.sha256):
            _LOG.info("the saved profile is of another bundle; measure this one: covey-edge profile")
            return
        self._publish("profile", payload)
