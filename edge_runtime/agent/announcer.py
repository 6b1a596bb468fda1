"""Messages that the device sends on its own: announcement, profile, state. The broker retains them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.agent.birth import Session, make_birth
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import ProfileError, ProtocolError, StorageError, cause_of
from edge_runtime.files.aside import set_aside
from edge_runtime.network.transport import Will
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import DeviceState, ProfileMessage
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile
from edge_runtime.protocol.topics import Kind, topic_for
from edge_runtime.store.accuracies import known_held_out

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.agent.readiness import Readiness
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
        machine: the machine, for its free memory.
        readiness: whether the device takes work; the agent re-evaluates it.

    Attributes:
        session: what the messages say of this process; the agent counts its connections, and enters the server's epoch.
    """

    def __init__(
        self,
        config: EdgeConfig,
        store: Store,
        transport: Transport,
        boot_id: str,
        machine: Machine,
        readiness: Readiness,
    ) -> None:
        self._config, self._store, self._transport = config, store, transport
        self.session = Session(boot_id)
        self._machine, self._readiness = machine, readiness
        self._doing: Literal["online", "busy"] = "online"

    def _publish(self, kind: Kind, payload: bytes) -> None:
        topic = topic_for(self._config.fleet, self._config.name, kind)
        self._transport.publish(topic, payload, retain=True)

    def all(self, journal: Journal, loaded: LoadedBundle | None) -> None:
        """Publish every message: the connection is new, or the server has said hello."""
        self.capabilities(journal, loaded)
        self.state(self._doing)

    def capabilities(self, journal: Journal, loaded: LoadedBundle | None) -> None:
        """Publish the birth message and the profile: on a new connection, and when the bundle has changed."""
        free_bytes, address = self._machine.free_bytes(), self._transport.local_address
        own = self._config.updates
        held_out = None if own.own_rows is None else known_held_out(self._store.root, own.largest_fall)
        birth = make_birth(self._config, self.session, journal, loaded, free_bytes, address, held_out)
        self._publish("birth", encode_message(birth))
        self._profile(journal.bundle_sha256)

    def state(self, state: Literal["online", "busy"]) -> None:
        """Publish what the device is doing and, where the owner's rules or its rows keep it from training, why."""
        self._doing = state
        reason = self._readiness.closed
        message = DeviceState(
            state=state,
            boot_id=self.session.boot_id,
            epoch=self.session.epoch,
            ineligible=None if reason is None else reason[:_LONGEST_REASON],
        )
        self._publish("state", encode_message(message))

    def goodbye(self) -> tuple[str, bytes]:
        """Return topic and payload of the state ``offline``, the last message of a device that shuts down properly."""
        message = DeviceState(state="offline", boot_id=self.session.boot_id)
        return topic_for(self._config.fleet, self._config.name, "state"), encode_message(message)

    def _profile(self, bundle_sha256: str | None) -> None:
        """Publish the profile that ``covey-edge profile`` has saved, so that a new broker or server gets it too."""
        path = self._store.root / PROFILE_FILE
        try:
            profile = decode_profile(path.read_bytes())
            # What was measured of stacks is of no use to a server, and an older one would refuse it.
            said = msgspec.structs.replace(profile, stacks=msgspec.UNSET)
            payload = encode_message(ProfileMessage(device=self._config.name, profile=said))
        except FileNotFoundError:
            return
        except (IsADirectoryError, ProfileError) as error:
            self._set_aside(path, f"the saved profile {path} is unusable: {cause_of(error)}")
            return
        except (OSError, ProtocolError) as error:
            _LOG.warning("the saved profile is not sent: %s", error)
            return
        if bundle_sha256 not in (None, profile.bundle.sha256):
            _LOG.info("the saved profile is of another bundle; measure this one: covey-edge profile")
            return
        measured_on = None if profile.measured is None else tuple(profile.measured.execution_providers or CPU_ONLY)
        if measured_on not in (None, self._config.execution_providers):
            _LOG.info(
                "the saved profile was measured on %s, and this device runs on %s; measure it: covey-edge profile",
                ", ".join(measured_on or ()),
                ", ".join(self._config.execution_providers),
            )
            return
        self._publish("profile", payload)

    def _set_aside(self, path: Path, why: str) -> None:
        try:
            set_aside(path, why)
        except StorageError as error:
            _LOG.warning("%s; %s", why, error)
